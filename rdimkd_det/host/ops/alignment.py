"""RoIAlign, RoIPool and BorderAlign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .backend import full, gradients, operator, put_gradients, torchvision_operator
from .sampling import sample


@operator
def roi_align_forward(
    *tensors: Tensor, aligned_height: int, aligned_width: int, pool_mode: int, **options
) -> None:
    """RoIAlign (Mask R-CNN, arXiv 1703.06870): (N, C, H, W) at rois (K, 5) to (K, C, h, w)."""
    input, rois, output, argmax_y, argmax_x = tensors
    input, rois = full(input, rois)
    size = (aligned_height, aligned_width)
    if pool_mode == 1:
        output.copy_(roi_align(input, rois, size, **options))
        return
    for members, index, y, x in _roi_points(rois, size, **options):
        bins, points = y.shape
        if points == 0:
            continue
        each = sample(input, index.repeat_interleave(points), y.view(-1, 1), x.view(-1, 1))
        values, at = each.view(bins, points, -1).max(1)
        output[members] = per_roi(values, size).to(output)
        argmax_y[members] = per_roi(y.gather(1, at), size).to(output)
        argmax_x[members] = per_roi(x.gather(1, at), size).to(output)


@operator
def roi_align_backward(
    *tensors: Tensor, aligned_height: int, aligned_width: int, pool_mode: int, **options
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to its input."""
    grad_output, rois, argmax_y, argmax_x, grad_input = tensors
    rois, grad_output = full(rois, grad_output)
    size, shape = (aligned_height, aligned_width), grad_input.shape
    native = torchvision_operator('_roi_align_backward', rois)
    if pool_mode == 0:
        index = rois[:, 0].long()[:, None].expand(-1, shape[1])
        grad_input.copy_(_grad_at_points(grad_output, index, argmax_y, argmax_x, shape))
    elif native:
        grad_input.copy_(native(grad_output, rois, *_in_order([*size, *shape], **options)))
    else:
        pool = partial(roi_align, rois=rois, size=size, **options)
        put_gradients(pool, [torch.zeros_like(grad_input)], grad_output, grad_input)


def roi_align(input: Tensor, rois: Tensor, size: tuple[int, int], **options) -> Tensor:
    """Average bilinear samples in each bin of each RoI: (K, C, h, w)."""
    native = torchvision_operator('roi_align', input)
    if native:
        return native(input, rois, *_in_order(size, **options))
    output = input.new_zeros(len(rois), input.shape[1], *size)
    for members, index, y, x in _roi_points(rois, size, **options):
        output[members] = per_roi(sample(input, index, y, x) / max(y.shape[1], 1), size)
    return output


def _in_order(
    sizes: Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> tuple:
    """Return the options in the order of torchvision's operators."""
    return spatial_scale, *sizes, sampling_ratio, aligned


def _roi_points(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield groups of RoIs: their indices, and per bin its map's index and points (K h w, S)."""
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)
    start_x, start_y, end_x, end_y = corners.unbind(1)
    width, height = end_x - start_x, end_y - start_y
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    for members, y, x in grid_points(height, width, size, sampling_ratio):
        y = y + start_y[members, None, None]
        x = x + start_x[members, None, None]
        index = rois[members, 0].long().repeat_interleave(y.shape[1])
        yield members, index, y.flatten(0, 1), x.flatten(0, 1)


def grid_points(
    height: Tensor, width: Tensor, size: tuple[int, int], sampling_ratio: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the regions of each grid size: their indices, and the points (K, h w, S) of each bin.

    Heights and widths (K,) are in positions of the map, ``size`` is the bins h and w of a region,
    ``sampling_ratio`` the points per bin and axis, 0 for about one per position.
    """
    sides = torch.stack([height / size[0], width / size[1]], dim=1)
    # A region that is NaN or smaller than 0 has no points.
    grids = torch.full_like(sides, sampling_ratio) if sampling_ratio > 0 else sides.ceil()
    grids = grids.long().clamp(min=0)
    for grid in grids.unique(dim=0):
        members = (grids == grid).all(1).nonzero().flatten()
        axes = [
            (torch.arange(bins * points, device=sides.device) + 0.5)
            / max(points, 1)
            * side[:, None]
            for bins, points, side in zip(size, grid.tolist(), sides[members].unbind(1))
        ]
        (y_points, x_points), count = grid.tolist(), len(members)
        shape = (count, size[0], size[1], y_points, x_points)
        y = axes[0].view(count, size[0], 1, y_points, 1).expand(shape)
        x = axes[1].view(count, 1, size[1], 1, x_points).expand(shape)
        merged = (count, size[0] * size[1], y_points * x_points)
        yield members, y.reshape(merged), x.reshape(merged)


def per_roi(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Reshape values of bins (K h w, C) to (K, C, h, w)."""
    bins = values.view(-1, size[0] * size[1], values.shape[1])
    return bins.transpose(1, 2).unflatten(2, size)


def _grad_at_points(
    grad_output: Tensor, index: Tensor, y: Tensor, x: Tensor, shape: tuple[int, ...]
) -> Tensor:
    """Spread gradients over the neighbours of one point per value: index (K, C) into N."""
    num, channels, height, width = shape
    maps = grad_output.new_zeros(num * channels, 1, height, width)
    plane = index * channels + torch.arange(channels, device=index.device)
    plane = plane.view(*plane.shape, *[1] * (y.dim() - 2)).expand(y.shape).reshape(-1)
    y, x = (it.reshape(-1, 1).to(maps.dtype) for it in (y, x))
    at_points = partial(sample, index=plane, y=y, x=x)
    (found,) = gradients(at_points, [maps], grad_output.reshape(-1, 1))
    return found.view(shape)


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (Fast R-CNN, arXiv 1504.08083). torchvision's rounds RoIs otherwise than mmcv's."""
    input, rois = full(input, rois)
    height, width = input.shape[2:]
    start = rois[:, 1:3] * spatial_scale
    end = (rois[:, 3:5] + 1) * spatial_scale
    x_low, x_high = _pool_bins(start[:, 0], end[:, 0], pooled_width, width)
    y_low, y_high = _pool_bins(start[:, 1], end[:, 1], pooled_height, height)
    valid = (end > start).all(1)
    argmax.fill_(-1)
    for roi in valid.nonzero().flatten().tolist():
        maps = input[int(rois[roi, 0])]
        rows, columns = _within(y_low[roi], y_high[roi]), _within(x_low[roi], x_high[roi])
        if not rows.numel() or not columns.numel():
            continue
        flat = rows.flatten()[:, None] * width + columns.flatten()
        bins = maps.flatten(1)[:, flat].unflatten(1, rows.shape).unflatten(3, columns.shape)
        values, at = bins.transpose(2, 3).flatten(3).max(3)
        filled = (y_high > y_low)[roi, :, None] & (x_high > x_low)[roi]
        position = flat.unflatten(0, rows.shape).unflatten(2, columns.shape)
        position = position.transpose(1, 2).flatten(2).expand(len(maps), -1, -1, -1)
        position = position.gather(3, at[..., None])[..., 0]
        output[roi] = torch.where(filled, values, 0).to(output)
        argmax[roi] = torch.where(filled, position, -1).to(argmax)


def _pool_bins(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the first positions of each bin, and those after its last: (K, bins) each."""
    steps = torch.arange(bins + 1, device=start.device) * ((end - start) / bins)[:, None]
    edges = steps + start[:, None]
    low, high = edges[:, :-1].floor(), edges[:, 1:].ceil()
    return low.clamp(0, size).long(), high.clamp(0, size).long()


def _within(low: Tensor, high: Tensor) -> Tensor:
    """Return the positions of each bin (bins, longest); shorter bins repeat their last."""
    longest = int((high - low).max())
    positions = low[:, None] + torch.arange(max(longest, 0), device=low.device)
    return positions.minimum((high - 1).maximum(low)[:, None]).clamp(
        max=max(int(high.max()) - 1, 0)
    )


@operator
def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, **options
) -> None:
    """Gradient of :func:`roi_pool_forward` with respect to its input."""
    bins = torch.where(argmax < 0, 0, argmax).long().flatten(2)
    grads = torch.where(argmax < 0, 0, grad_output).flatten(2)
    maps = grad_input.flatten(2)
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        maps[image].scatter_add_(1, bins[roi], grads[roi].to(maps))


@operator
def border_align_forward(
    input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int
) -> None:
    """BorderAlign (BorderDet, arXiv 2007.11056): (N, 4C, H, W), boxes (N, B, 4) to (N, C, B, 4)."""
    input, boxes = full(input, boxes)
    num, channels = len(input), input.shape[1] // 4
    steps = torch.arange(pool_size + 1, device=boxes.device)
    y, x = _border_points(boxes[..., None, :], steps[:, None] / pool_size)  # (N, B, P, 4) each
    index = torch.arange(num * 4, device=boxes.device).view(num, 1, 1, 4).expand(y.shape)
    maps = input.reshape(num * 4, channels, *input.shape[2:])
    values = sample(maps, index.reshape(-1), y.reshape(-1, 1), x.reshape(-1, 1))
    values, at = values.view(*y.shape, channels).max(2)  # (N, B, 4, C)
    output.copy_(values.permute(0, 3, 1, 2))
    argmax_idx.copy_(at.permute(0, 3, 1, 2))


@operator
def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Gradient of :func:`border_align_forward` with respect to its input."""
    grad_output, boxes = full(grad_output, boxes)
    num, channels = grad_output.shape[:2]
    y, x = _border_points(boxes[:, None], argmax_idx / pool_size)  # (N, C, B, 4) each
    y, x, grads = (it.permute(0, 3, 1, 2).flatten(0, 1) for it in (y, x, grad_output))
    index = torch.arange(num * 4, device=boxes.device)[:, None].expand(-1, channels)
    shape = (num * 4, channels, *grad_input.shape[2:])
    grad_input.copy_(_grad_at_points(grads, index, y, x, shape).view(grad_input.shape))


def _border_points(boxes: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and x at a share of each border (last axis: top, left, bottom, right).

    Top and left start at the first corner, bottom and right go back from the second.
    """
    y_start, x_start = boxes[..., [1, 1, 3, 3]], boxes[..., [0, 0, 2, 2]]
    y_end, x_end = boxes[..., [1, 3, 3, 1]], boxes[..., [2, 0, 0, 2]]
    return y_start + share * (y_end - y_start), x_start + share * (x_end - x_start)
