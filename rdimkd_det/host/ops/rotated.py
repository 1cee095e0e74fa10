"""Operators of rotated detectors: RoIAlignRotated, feature alignment, active rotating filters."""

from __future__ import annotations

import torch
from torch import Tensor

from .alignment import grid_points, per_roi
from .backend import linear_operators
from .sampling import sample


@linear_operators
def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Tensor:
    """Average bilinear samples in the bins of rotated RoIs (K, 6): (K, C, h, w)."""
    size = (pooled_height, pooled_width)
    center = rois[:, 1:3] * spatial_scale - (0.5 if aligned else 0)
    width, height = (rois[:, 3:5] * spatial_scale).unbind(1)
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    angle = -rois[:, 5] if clockwise else rois[:, 5]
    output = input.new_zeros(len(rois), input.shape[1], *size)
    for members, y, x in grid_points(height, width, size, sampling_ratio):
        y = y - (height[members] / 2)[:, None, None]
        x = x - (width[members] / 2)[:, None, None]
        cos, sin = (f(angle[members])[:, None, None] for f in (torch.cos, torch.sin))
        rows = y * cos - x * sin + center[members, 1, None, None]
        columns = y * sin + x * cos + center[members, 0, None, None]
        index = rois[members, 0].long().repeat_interleave(y.shape[1])
        sums = sample(input, index, rows.flatten(0, 1), columns.flatten(0, 1))
        output[members] = per_roi(sums / max(y.shape[2], 1), size)
    return output


@linear_operators
def rotated_feature_align(
    features: Tensor, boxes: Tensor, spatial_scale: float, points: int
) -> Tensor:
    """Add to each position of (N, C, H, W) what lies at its box (N, H, W, 5): R3Det, 1908.05612.

    At the box's centre, or with 5 points at its corners as well.
    """
    boxes = boxes.reshape(-1, 5)
    y, x, width, height = (boxes[:, :4] * spatial_scale).unbind(1)
    y, x = y[:, None], x[:, None]
    if points > 1:
        cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
        along = width[:, None] / 2 * boxes.new_tensor([0, 1, -1, -1, 1])
        across = height[:, None] / 2 * boxes.new_tensor([0, 1, 1, -1, -1])
        x, y = x + cos * along - sin * across, y + sin * along + cos * across
    num, _, rows, columns = features.shape
    index = torch.arange(num, device=boxes.device).repeat_interleave(rows * columns)
    found = sample(features, index, y, x).view(num, rows, columns, -1)
    return features + found.permute(0, 3, 1, 2)


@linear_operators
def active_rotated_filter(filters: Tensor, indices: Tensor) -> Tensor:
    """Rotate filters (C_out, C_in, orientations, k, k) to (C_out R, C_in orientations, k, k).

    Active rotating filters (arXiv 1701.01833): indices (orientations, k, k, R) tell, counted from
    1, to which entry of the filter each entry goes in each of R rotations.
    """
    entries = indices.flatten(0, 2).t().long() - 1  # (R, orientations k k)
    values = filters.flatten(2)[:, None].expand(-1, len(entries), -1, -1)
    at = entries[None, :, None].expand(values.shape)
    rotated = torch.zeros_like(values).scatter(3, at, values)
    return rotated.reshape(-1, filters.shape[1] * filters.shape[2], *filters.shape[3:])
