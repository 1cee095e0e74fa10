"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) on a GPU.

On a CPU, mmcv computes it in plain torch itself.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .backend import full, gradients, operator


def _attend(
    value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, shapes: list[list[int]]
) -> Tensor:
    # Not at the top: mmcv.ops asks for this package's operators when it is imported.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Attend to values (N, keys, heads, C) at locations (N, queries, heads, levels, points, 2)."""
    inputs = full(value, sampling_locations, attention_weights)
    return _attend(*inputs, value_spatial_shapes.tolist()).to(value.dtype)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward` with respect to its three inputs."""
    attend = partial(_attend, shapes=value_spatial_shapes.tolist())
    found = gradients(attend, [value, sampling_locations, attention_weights], grad_output)
    for grad, computed in zip((grad_value, grad_sampling_loc, grad_attn_weight), found):
        grad.copy_(computed)


OPERATORS = (ms_deform_attn_forward, ms_deform_attn_backward)
