"""Operators of rotated detectors: RoIAlignRotated, feature alignment, active rotating filters."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .alignment import grid_points, per_roi
from .backend import full, gradients, operator
from .sampling import sample


def roi_align_rotated(
    input: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> Tensor:
    """Average bilinear samples in the bins of rotated RoIs (K, 6): (K, C, h, w)."""
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


@operator
def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """:func:`roi_align_rotated`."""
    size, options = (pooled_height, pooled_width), (spatial_scale, sampling_ratio, aligned)
    output.copy_(roi_align_rotated(*full(input, rois), size, *options, clockwise))


@operator
def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Gradient of :func:`roi_align_rotated` with respect to its input."""
    pool = partial(
        roi_align_rotated,
        rois=full(rois)[0],
        size=(pooled_height, pooled_width),
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        clockwise=clockwise,
    )
    grad_input.copy_(gradients(pool, [torch.zeros_like(grad_input)], grad_output)[0])


def feature_align(features: Tensor, boxes: Tensor, spatial_scale: float, points: int) -> Tensor:
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


@operator
def rotated_feature_align_forward(
    features: Tensor, best_bboxes: Tensor, output: Tensor, spatial_scale: float, points: int
) -> None:
    """:func:`feature_align`."""
    output.copy_(feature_align(*full(features, best_bboxes), spatial_scale, points))


@operator
def rotated_feature_align_backward(
    grad_output: Tensor, best_bboxes: Tensor, grad_input: Tensor, spatial_scale: float, points: int
) -> None:
    """Gradient of :func:`feature_align` with respect to the features."""
    align = partial(
        feature_align, boxes=full(best_bboxes)[0], spatial_scale=spatial_scale, points=points
    )
    grad_input.copy_(gradients(align, [torch.zeros_like(grad_input)], grad_output)[0])


@operator
def active_rotated_filter_forward(input: Tensor, indices: Tensor, output: Tensor) -> None:
    """Rotate filters (C_out, C_in, orientations, k, k) to (C_out R, C_in orientations, k, k).

    Active rotating filters (arXiv 1701.01833): indices (orientations, k, k, R) tell, counted from
    1, to which entry of the filter each entry goes in each of R rotations.
    """
    entries = _entries(indices)  # (R, orientations k k)
    planes, depth = input.shape[:2]
    rotated = torch.zeros(planes, len(entries), depth, entries.shape[1], device=input.device)
    rotated = rotated.to(input.dtype)
    at = entries[None, :, None].expand(rotated.shape)
    values = input.flatten(2)[:, None].expand(rotated.shape)
    output.copy_(rotated.scatter_(3, at, values).view(output.shape))


@operator
def active_rotated_filter_backward(
    grad_output: Tensor, indices: Tensor, grad_input: Tensor
) -> None:
    """Gradient of :func:`active_rotated_filter_forward` with respect to the filters."""
    entries = _entries(indices)
    planes, depth = grad_input.shape[:2]
    grads = grad_output.reshape(planes, len(entries), depth, entries.shape[1])
    at = entries[None, :, None].expand(grads.shape)
    grad_input.copy_(grads.gather(3, at).sum(1).view(grad_input.shape))


def _entries(indices: Tensor) -> Tensor:
    return indices.flatten(0, 2).t().long() - 1


OPERATORS = (
    roi_align_rotated_forward,
    roi_align_rotated_backward,
    rotated_feature_align_forward,
    rotated_feature_align_backward,
    active_rotated_filter_forward,
    active_rotated_filter_backward,
)
