"""Deformable convolution, plain and modulated, and convolution at masked positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import full, gradients, operator, torchvision_operator


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation, each (vertical, horizontal), and groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    def flat(self) -> tuple[int, ...]:
        """Return the numbers in the order of torchvision's operators."""
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.offset_groups)


def deform_conv(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Deformable convolution (arXiv 1703.06211), modulated (1811.11168) with a mask.

    Args:
        input (Tensor): (N, C, H, W).
        weight (Tensor): (C_out, C / groups, k_h, k_w).
        offset (Tensor): (N, 2 * offset_groups * k_h * k_w, H_out, W_out): y and x in turn.
        mask (Tensor, optional): (N, offset_groups * k_h * k_w, H_out, W_out).
        bias (Tensor, optional): (C_out,).
        geometry (Geometry): Stride, padding, dilation and groups.

    Returns:
        Tensor: (N, C_out, H_out, W_out).
    """
    native = torchvision_operator('deform_conv2d', input)
    if native:
        used = mask is not None
        mask = input.new_zeros(len(input), 1) if mask is None else mask
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return native(input, weight, offset, mask, bias, *geometry.flat(), used)
    columns = _columns(input, offset, weight.shape[2:], geometry)  # (N, C, taps, H_out, W_out)
    if mask is not None:
        columns = columns.unflatten(1, (geometry.offset_groups, -1))
        masks = mask.unflatten(1, (geometry.offset_groups, 1, -1))
        columns = (columns * masks).flatten(1, 2)
    grouped = columns.flatten(3).unflatten(1, (geometry.groups, -1)).flatten(2, 3)
    weights = weight.flatten(1).unflatten(0, (geometry.groups, -1))
    output = (weights @ grouped).flatten(1, 2).unflatten(2, offset.shape[2:])
    return output if bias is None else output + bias[:, None, None]


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


def _grads(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: Geometry,
) -> dict[str, Tensor]:
    """Return the gradients of :func:`deform_conv`, by argument."""
    native = torchvision_operator('_deform_conv2d_backward', input)
    if native:
        used, bias = mask is not None, weight.new_zeros(len(weight))
        given = input.new_zeros(len(input), 1) if mask is None else mask
        arguments = (grad_output, input, weight, offset, given, bias, *geometry.flat(), used)
        return dict(zip(('input', 'weight', 'offset', 'mask', 'bias'), native(*arguments)))
    inputs = {'input': input, 'weight': weight, 'offset': offset}
    if mask is not None:
        inputs['mask'] = mask

    def convolve(*values: Tensor) -> Tensor:
        given = dict(zip(inputs, values))
        return deform_conv(**{'mask': None, **given}, bias=None, geometry=geometry)

    found = gradients(convolve, list(inputs.values()), grad_output)
    return {**dict(zip(inputs, found)), 'bias': grad_output.sum((0, 2, 3))}


def _geometry_v1(
    dH: int,
    dW: int,
    padH: int,
    padW: int,
    dilationH: int,
    dilationW: int,
    group: int,
    deformable_group: int,
    **unused,
) -> Geometry:
    return Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)


def _geometry_v2(
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    **unused,
) -> Geometry:
    return Geometry(
        (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group
    )


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **options,
) -> None:
    """:func:`deform_conv` without a mask; columns and ones are mmcv's work space, unused."""
    geometry = _geometry_v1(**options)
    output.copy_(deform_conv(*full(input, weight, offset), None, None, geometry))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **options,
) -> None:
    """Gradients of :func:`deform_conv_forward` with respect to input and offset."""
    given = full(grad_output, input, weight, offset)
    found = _grads(*given, None, _geometry_v1(**options))
    grad_input.copy_(found['input'])
    grad_offset.copy_(found['offset'])


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **options,
) -> None:
    """Gradient of :func:`deform_conv_forward` with respect to the weight, times scale."""
    # The convolution is linear in its weight, whose values its gradient does not need.
    given = full(grad_output, input, torch.zeros_like(grad_weight), offset)
    found = _grads(*given, None, _geometry_v1(**options))
    grad_weight.add_(found['weight'].to(grad_weight), alpha=scale)


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **options,
) -> None:
    """:func:`deform_conv` with a mask."""
    input, weight, offset, mask, bias = full(input, weight, offset, mask, bias)
    bias = bias if with_bias else None
    output.copy_(deform_conv(input, weight, offset, mask, bias, _geometry_v2(**options)))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **options,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` with respect to all its inputs."""
    given = full(grad_output, input, weight, offset, mask)
    found = _grads(*given, _geometry_v2(**options))
    grad_input.copy_(found['input'])
    grad_weight.copy_(found['weight'])
    grad_offset.copy_(found['offset'])
    grad_mask.copy_(found['mask'])
    if with_bias:
        grad_bias.copy_(found['bias'])


@operator
def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Copy the patch of each of M positions of an image (1, C, H, W) to col (C k_h k_w, M)."""
    # Also what a kernel covers beyond the padding, since any position may be masked.
    padded = F.pad(im[0], (pad_w, pad_w + kernel_w, pad_h, pad_h + kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


@operator
def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write values col (C, M) to M positions of an image (1, C, H, W)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)


OPERATORS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    masked_im2col_forward,
    masked_col2im_forward,
)
