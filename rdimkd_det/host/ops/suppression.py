"""Non-maximum suppression: NMS, Soft-NMS, NMS match, and rotated NMS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .backend import full, operator, torchvision_operator
from .boxes import pairwise_iou, rotated_iou

# Boxes whose overlaps with all later ones are computed at once.
BLOCK = 256
NAIVE, LINEAR, GAUSSIAN = 0, 1, 2  # mmcv's methods of Soft-NMS


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (N, 4) that remain, by descending score."""
    boxes, scores = full(boxes, scores)
    # Sides are x2 - x1 + offset, so that an offset moves the second corner.
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    native = torchvision_operator('nms', boxes)
    if native:
        return native(boxes, scores, iou_threshold)
    return _suppress(boxes, scores, lambda one, others: pairwise_iou(one, others) > iou_threshold)


def _suppress(boxes: Tensor, scores: Tensor, overlap: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Keep boxes by descending score, each unless it overlaps one that is kept."""
    order = scores.sort(descending=True, stable=True).indices
    kept = []
    while order.numel():
        block, order = order[:BLOCK], order[BLOCK:]
        kept.append(block[_greedy(overlap(boxes[block], boxes[block]))])
        if order.numel():
            order = order[~overlap(boxes[kept[-1]], boxes[order]).any(0)]
    return torch.cat(kept) if kept else order


def _greedy(overlaps: Tensor) -> Tensor:
    """Return which of some sorted boxes to keep, given which of them (N, N) overlap."""
    rows = overlaps.cpu().numpy()
    suppressed = np.zeros(len(rows), dtype=bool)
    for box, overlapped in enumerate(rows):
        if not suppressed[box]:
            suppressed[box + 1 :] |= overlapped[box + 1 :]
    return torch.from_numpy(~suppressed).to(overlaps.device)


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503) on the CPU: fills dets (N, 5) and returns the kept indices."""
    corners, left = boxes.float().numpy().copy(), scores.float().numpy().copy()
    indices, end = np.arange(len(left)), len(left)
    with np.errstate(invalid='ignore', divide='ignore'):
        for first in range(len(left)):
            if first >= end:
                break
            best = first + left[first:end].argmax()
            for values in (corners, left, indices):
                values[[first, best]] = values[[best, first]]
            rest = slice(first + 1, end)
            overlaps = _iou(corners[first], corners[rest], offset)
            if method == GAUSSIAN:
                left[rest] *= np.exp(-(overlaps**2) / np.float32(sigma))
            else:
                fewer = 1 - overlaps if method == LINEAR else np.zeros_like(overlaps)
                left[rest] *= np.where(overlaps >= np.float32(iou_threshold), fewer, 1)
            # Like mmcv, fill the places of discarded boxes from the end, which decides ties.
            discarded = left[rest] < np.float32(min_score)
            remaining = first + 1 + np.count_nonzero(~discarded)
            holes = first + 1 + np.flatnonzero(discarded[: remaining - first - 1])
            movers = remaining + np.flatnonzero(~discarded[remaining - first - 1 :])
            for values in (corners, left, indices):
                values[holes] = values[movers[::-1]]
            end = remaining
    dets[:end] = torch.from_numpy(np.column_stack([corners, left])[:end]).to(dets)
    return torch.from_numpy(indices[:end])


def _iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + offset
    shared = np.maximum(sides, 0).prod(1)
    areas = (others[:, 2:] - others[:, :2] + offset).prod(1)
    return shared / ((box[2:] - box[:2] + offset).prod() + areas - shared)


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group dets (N, 5): each kept box, followed by those that it suppresses, by score."""
    (dets,) = full(dets)
    order = dets[:, 4].sort(descending=True, stable=True).indices
    groups = []
    while order.numel():
        overlapped = pairwise_iou(dets[order[:1], :4], dets[order, :4])[0] >= iou_threshold
        overlapped[0] = True
        groups.append(order[overlapped].tolist())
        order = order[~overlapped]
    return groups


@operator
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """NMS of rotated boxes (N, 5), or (N, 6) with labels, which then must agree."""
    dets, scores = full(dets, scores)

    def overlap(one: Tensor, others: Tensor) -> Tensor:
        found = rotated_iou(one[:, :5], others[:, :5]) >= iou_threshold
        return found & (one[:, None, 5] == others[:, 5]) if multi_label else found

    return _suppress(dets, scores, overlap)
