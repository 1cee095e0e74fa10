"""Positions of feature maps that lie in the images, not in the padding of their batch."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor


def positions_in_images(
    sizes: Sequence[tuple[int, int]] | None, maps: Tensor, stride: int
) -> Tensor | None:
    """Return which positions of a map lie in an image, at least in part.

    Correlation and variance of two maps say little where both are constant: batches of images of
    mixed sizes are padded by up to 40 percent.

    Args:
        sizes (Sequence[tuple[int, int]], optional): (H, W) of each image in pixels.
        maps (Tensor): The map (N, C, h, w) of the padded batch.
        stride (int): Pixels from one position to the next.

    Returns:
        Tensor | None: Indices (M,) into the N * h * w positions, known
        without waiting for the device; None for all of them.

    Example:
        >>> import torch
        >>> positions_in_images([(16, 16), (16, 8)], torch.zeros(2, 1, 2, 2), stride=8).tolist()
        [0, 1, 2, 3, 4, 6]
    """
    if sizes is None or len(sizes) != len(maps):
        return None
    height, width = maps.shape[2:]
    covered = [(ceil(rows / stride), ceil(columns / stride)) for rows, columns in sizes]
    if all(rows >= height and columns >= width for rows, columns in covered):
        return None
    grid = torch.arange(len(maps) * height * width).view(len(maps), height, width)
    inside = [
        of_image[:rows, :columns].flatten() for of_image, (rows, columns) in zip(grid, covered)
    ]
    return torch.cat(inside).to(maps.device, non_blocking=True)


def select_positions(coordinates: Tensor, positions: Tensor | None) -> Tensor:
    """Select positions of coordinates (N, d, L): (1, d, M); all of them if None."""
    if positions is None:
        return coordinates
    return coordinates.transpose(0, 1).flatten(1).index_select(1, positions)[None]
