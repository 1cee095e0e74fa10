"""Bilinear sampling of feature maps at points, as mmcv's RoI operators define it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(maps: Tensor, index: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sum bilinear samples of feature maps over groups of points.

    From maps (N, C, H, W), the index (K,) into N of each group's map, and each group's points
    (K, S), in positions of the map, to the sums (K, C). Points beyond one position outside the map
    count as 0, others are moved to its border.
    """
    channels, height, width = maps.shape[1:]
    if index.numel() == 0 or y.shape[1] == 0:
        return maps.new_zeros(len(index), channels)
    # One row of the table per position, so that a group is a weighted sum of rows.
    table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    rows, weights = [], []
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    for row, row_weight in zip(*_neighbours(y, height)):
        for column, column_weight in zip(*_neighbours(x, width)):
            rows.append(row * width + column)
            weights.append(row_weight * column_weight * inside)
    start = index.long()[:, None] * height * width
    return F.embedding_bag(
        torch.cat(rows, dim=1) + start,
        table,
        mode='sum',
        per_sample_weights=torch.cat(weights, dim=1).to(table.dtype),
    )


def _neighbours(at: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the two neighbouring positions on an axis, and their weights."""
    at = at.clamp(0, size - 1)
    low = at.floor()
    share = at - low
    low = low.long()
    return (low, (low + 1).clamp(max=size - 1)), (1 - share, share)
