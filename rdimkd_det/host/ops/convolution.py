"""Deformable convolution, plain and modulated, and convolution at masked positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import full, gradients, operator, torchvision_operator

INPUTS = ('input', 'weight', 'offset', 'mask', 'bias')


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation, each (vertical, horizontal), and groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    @classmethod
    def of(cls, options: dict[str, int]) -> Geometry:
        """Read the options of mmcv's two kinds of deformable convolution."""
        plain = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW')
        modulated = ('stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w')
        numbers = [options[name] for name in (plain if 'dH' in options else modulated)]
        pairs = zip(numbers[::2], numbers[1::2])
        return cls(*pairs, options['group'], options['deformable_group'])


def deform_conv(
    geometry: Geometry, input: Tensor, weight: Tensor, offset: Tensor, mask=None, bias=None
) -> Tensor:
    """Deformable convolution (arXiv 1703.06211), modulated (1811.11168) with a mask.

    From input (N, C, H, W) and weight (C_out, C / groups, k_h, k_w) to (N, C_out, H_out, W_out).
    The offset (N, 2 * offset_groups * k_h * k_w, H_out, W_out) holds y and x in turn, the mask is
    (N, offset_groups * k_h * k_w, H_out, W_out). Larger ones are taken as the compiled operator
    does, see :func:`_of_size`.
    """
    stride, padding, dilation = geometry.stride, geometry.padding, geometry.dilation
    axes = zip(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    size = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    offset, mask = _of_size(offset, size), None if mask is None else _of_size(mask, size)
    native = torchvision_operator('deform_conv2d', input)
    if native:
        return native(*_native_arguments(geometry, input, weight, offset, mask, bias))
    columns = _columns(input, offset, weight.shape[2:], geometry)  # (N, C, taps, H_out, W_out)
    if mask is not None:
        columns = columns.unflatten(1, (geometry.offset_groups, -1))
        masks = mask.unflatten(1, (geometry.offset_groups, 1, -1))
        columns = (columns * masks).flatten(1, 2)
    grouped = columns.flatten(3).unflatten(1, (geometry.groups, -1)).flatten(2, 3)
    weights = weight.flatten(1).unflatten(0, (geometry.groups, -1))
    output = (weights @ grouped).flatten(1, 2).unflatten(2, size)
    return output if bias is None else output + bias[:, None, None]


def _of_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the start of an image's numbers in maps of another size, as if it were all of them.

    DyHead and GLIP hand in offsets of the finer level. The compiled operator reads them like this,
    and their published weights are trained with it.
    """
    if tuple(maps.shape[2:]) == size:
        return maps
    channels = maps.shape[1]
    return maps.flatten(1)[:, : channels * size[0] * size[1]].unflatten(1, (channels, *size))


def _native_arguments(
    geometry: Geometry, input: Tensor, weight: Tensor, offset: Tensor, mask=None, bias=None
) -> tuple:
    used, groups = mask is not None, (geometry.groups, geometry.offset_groups)
    mask = mask if used else input.new_zeros(len(input), 1)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    numbers = (*geometry.stride, *geometry.padding, *geometry.dilation, *groups)
    return input, weight, offset, mask, bias, *numbers, used


def _columns(input: Tensor, offset: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    """Sample the input at each tap of the kernel: (N, C, taps, H_out, W_out)."""
    num, _, height, width = input.shape
    groups, (rows, columns) = geometry.offset_groups, offset.shape[2:]
    offset = offset.reshape(num * groups, -1, 2, rows, columns)
    axes = []
    for axis, (size, out, taps) in enumerate(zip((height, width), (rows, columns), kernel)):
        start = torch.arange(out, device=input.device) * geometry.stride[axis]
        tap = torch.arange(taps, device=input.device) * geometry.dilation[axis]
        at = tap[:, None] + start - geometry.padding[axis]  # (k, out)
        at = at[:, None, :, None] if axis == 0 else at[None, :, None, :]
        at = at.expand(*kernel, rows, columns).flatten(0, 1)
        # grid_sample's coordinates: -1 and 1 are the first and the last position.
        axes.append((at + offset[:, :, axis]) * (2 / max(size - 1, 1)) - (1 if size > 1 else 0))
    grid = torch.stack(axes[::-1], dim=-1).flatten(1, 2)  # (N g, taps H_out, W_out, 2)
    maps = input.reshape(num * groups, -1, height, width)
    sampled = F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=True)
    return sampled.unflatten(2, (-1, rows)).unflatten(0, (num, groups)).flatten(1, 2)


def _grads(options: dict, grad_output: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
    """Return the gradients of :func:`deform_conv`, by argument; only the mask may be left out."""
    geometry = Geometry.of(options)
    grad_output, *inputs = full(grad_output, *inputs)
    native = torchvision_operator('_deform_conv2d_backward', inputs[0])
    if native and tuple(inputs[2].shape[2:]) == tuple(grad_output.shape[2:]):
        found = native(grad_output, *_native_arguments(geometry, *inputs))
        return dict(zip(INPUTS, found))
    found = gradients(partial(deform_conv, geometry), inputs, grad_output)
    return {**dict(zip(INPUTS, found)), 'bias': grad_output.sum((0, 2, 3))}


@operator
def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *work_space: Tensor, **options
) -> None:
    """:func:`deform_conv` without a mask."""
    output.copy_(deform_conv(Geometry.of(options), *full(input, weight, offset)))


@operator
def deform_conv_backward_input(*tensors: Tensor, **options) -> None:
    """Gradients of :func:`deform_conv_forward` with respect to input and offset."""
    input, offset, grad_output, grad_input, grad_offset, weight, _work_space = tensors
    found = _grads(options, grad_output, input, weight, offset)
    grad_input.copy_(found['input'])
    grad_offset.copy_(found['offset'])


@operator
def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **options) -> None:
    """Gradient of :func:`deform_conv_forward` with respect to the weight, times scale."""
    input, offset, grad_output, grad_weight, *_ = tensors
    # The convolution is linear in its weight, whose values its gradient does not need.
    found = _grads(options, grad_output, input, torch.zeros_like(grad_weight), offset)
    grad_weight.add_(found['weight'].to(grad_weight), alpha=scale)


@operator
def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **options) -> None:
    """:func:`deform_conv` with a mask."""
    input, weight, bias, _ones, offset, mask, output, _work_space = tensors
    input, weight, offset, mask, bias = full(input, weight, offset, mask, bias)
    bias = bias if with_bias else None
    output.copy_(deform_conv(Geometry.of(options), input, weight, offset, mask, bias))


@operator
def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **options) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` with respect to all its inputs."""
    input, weight, _bias, _ones, offset, mask, _work_space, *grads, grad_output = tensors
    found = _grads(options, grad_output, input, weight, offset, mask)
    for name, grad in zip(('input', 'weight', 'bias', 'offset', 'mask'), grads):
        if name != 'bias' or with_bias:
            grad.copy_(found[name])


@operator
def masked_im2col_forward(
    *tensors: Tensor, kernel_h: int, kernel_w: int, pad_h: int, pad_w: int
) -> None:
    """Copy the patch of each of M positions of an image (1, C, H, W) to col (C k_h k_w, M)."""
    im, mask_h_idx, mask_w_idx, col = tensors
    # Also what a kernel covers beyond the padding, since any position may be masked.
    padded = F.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


@operator
def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, **unused
) -> None:
    """Write values col (C, M) to M positions of an image (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)
