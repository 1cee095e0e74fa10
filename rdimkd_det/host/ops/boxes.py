"""Overlaps of boxes, upright and rotated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .backend import full, operator

# Rotated boxes of a smaller area overlap nothing, as in mmcv.
SMALLEST_AREA = 1e-14


@operator
def bbox_overlaps(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """IoU (mode 0), or overlap of boxes1's area, of all pairs of boxes, or of aligned ones."""
    ious.copy_(pairwise_iou(*full(boxes1, boxes2), mode, aligned, offset))


def pairwise_iou(
    boxes1: Tensor, boxes2: Tensor, mode: int = 0, aligned: bool = False, offset: int = 0
) -> Tensor:
    """Compute the overlaps of boxes (N, 4) and (M, 4): (N, M), or (N,) if aligned."""
    area1, area2 = ((it[:, 2:] - it[:, :2] + offset).prod(1) for it in (boxes1, boxes2))
    if not aligned:
        boxes1, area1 = boxes1[:, None], area1[:, None]
    sides = boxes1[..., 2:].minimum(boxes2[:, 2:]) - boxes1[..., :2].maximum(boxes2[:, :2])
    shared = (sides + offset).clamp(min=0).prod(-1)
    return shared / (area1 + area2 - shared if mode == 0 else area1)


@operator
def box_iou_rotated(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """The same for rotated boxes (x, y, w, h, angle in radians)."""
    boxes1, boxes2 = full(boxes1, boxes2)
    if aligned:
        found = _overlaps(boxes1, boxes2, mode_flag)
    else:
        found = rotated_iou(boxes1, boxes2, mode_flag)
    ious.copy_(found.reshape(ious.shape))


def rotated_iou(boxes1: Tensor, boxes2: Tensor, mode: int = 0) -> Tensor:
    """Compute the overlaps (N, M) of rotated boxes (N, 5) and (M, 5)."""
    # Only boxes whose circumcircles meet can overlap.
    radii = boxes1[:, None, 2:4].norm(dim=-1) + boxes2[:, 2:4].norm(dim=-1)
    near = (boxes1[:, None, :2] - boxes2[:, :2]).norm(dim=-1) * 2 <= radii
    one, other = near.nonzero().unbind(1)
    overlaps = boxes1.new_zeros(near.shape)
    overlaps[one, other] = _overlaps(boxes1[one], boxes2[other], mode)
    return overlaps


def _overlaps(boxes1: Tensor, boxes2: Tensor, mode: int) -> Tensor:
    """Compute the overlaps (N,) of pairs of rotated boxes."""
    area1, area2 = (it[:, 2] * it[:, 3] for it in (boxes1, boxes2))
    # Around their middle, coordinates are small and differences exact.
    middle = (boxes1[:, :2] + boxes2[:, :2]) / 2
    corners1, corners2 = (_corners(it, it[:, :2] - middle) for it in (boxes1, boxes2))
    shared = _shared_area(corners1, corners2)
    overlaps = shared / (area1 + area2 - shared if mode == 0 else area1)
    return torch.where((area1 < SMALLEST_AREA) | (area2 < SMALLEST_AREA), 0, overlaps)


@operator
def diff_iou_rotated_sort_vertices_forward(
    vertices: Tensor, mask: Tensor, num_valid: Tensor
) -> Tensor:
    """Return in which order the valid of vertices (B, N, M, 2) make a polygon: (B, N, M + 1).

    They are around (0, 0). The first one comes last again, as often as is needed: it adds no area.
    mmcv's own operator, for GPUs only, returns (B, N, 9).
    """
    angles = torch.atan2(vertices[..., 1], vertices[..., 0]).masked_fill(~mask, math.inf)
    order = angles.argsort(-1)
    order = torch.cat([order, order[..., :1]], dim=-1)
    valid = torch.arange(order.shape[-1], device=order.device) < num_valid[..., None]
    return torch.where(valid, order, order[..., :1])


def _corners(boxes: Tensor, centers: Tensor) -> Tensor:
    """Return the corners (N, 4, 2) of rotated boxes, in order."""
    angle = boxes[:, 4]
    across = torch.stack([angle.cos(), angle.sin()], 1) * boxes[:, 2:3] / 2
    along = torch.stack([-angle.sin(), angle.cos()], 1) * boxes[:, 3:4] / 2
    signs = ((-1, 1), (-1, -1), (1, -1), (1, 1))
    return torch.stack([centers + a * across + b * along for a, b in signs], dim=1)


def _shared_area(corners1: Tensor, corners2: Tensor) -> Tensor:
    """Return the area (N,) that two rectangles share, a convex polygon of 8 corners at most."""
    crossings, crossed = _crossings(corners1, corners2)
    points = torch.cat([crossings, corners1, corners2], dim=1)  # (N, 24, 2)
    on_both = [crossed, _inside(corners1, corners2), _inside(corners2, corners1)]
    on_both = torch.cat(on_both, dim=1)
    count = on_both.sum(1)
    weight = on_both / count.clamp(min=1)[:, None]
    points = points - (points * weight[..., None]).sum(1, keepdim=True)
    angles = torch.atan2(points[..., 1], points[..., 0])
    order = angles.masked_fill(~on_both, math.inf).argsort(dim=1)
    points = points.gather(1, order[..., None].expand_as(points))
    # Points outside come last, and are replaced by the first so that they add no area.
    valid = torch.arange(points.shape[1], device=points.device) < count[:, None]
    points = torch.where(valid[..., None], points, points[:, :1])
    area = _cross(points, points.roll(-1, dims=1)).sum(1).abs() / 2
    return torch.where(count > 2, area, 0)


def _crossings(corners1: Tensor, corners2: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the sides of two rectangles cross (N, 16, 2), and whether they do (N, 16)."""
    start1, start2 = corners1[:, :, None], corners2[:, None]
    side1 = (corners1.roll(-1, dims=1) - corners1)[:, :, None]
    side2 = (corners2.roll(-1, dims=1) - corners2)[:, None]
    determinant = _cross(side2, side1)
    parallel = determinant.abs() <= 1e-14
    determinant = torch.where(parallel, 1, determinant)
    share1 = _cross(side2, start2 - start1) / determinant
    share2 = _cross(side1, start2 - start1) / determinant
    crossed = ~parallel & (share1 >= 0) & (share1 <= 1) & (share2 >= 0) & (share2 <= 1)
    return (start1 + side1 * share1[..., None]).flatten(1, 2), crossed.flatten(1)


def _inside(points: Tensor, rectangle: Tensor) -> Tensor:
    """Return which points (N, P, 2) lie in a rectangle (N, 4, 2)."""
    origin = rectangle[:, :1]
    found = torch.ones_like(points[..., 0], dtype=torch.bool)
    for corner in (rectangle[:, 1:2], rectangle[:, 3:4]):
        side = corner - origin
        along = ((points - origin) * side).sum(-1)
        found &= (along >= 0) & (along <= (side * side).sum(-1))
    return found


def _cross(one: Tensor, other: Tensor) -> Tensor:
    return one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
