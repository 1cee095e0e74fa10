"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) on a GPU.

On a CPU, mmcv computes it in plain torch itself.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .backend import full, operator, put_gradients


def _attend(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[list[int]]) -> Tensor:
    # Not at the top: mmcv.ops asks for this package's operators when it is imported.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


@operator
def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, **unused
) -> Tensor:
    """Attend to values (N, keys, heads, C) at locations (N, queries, heads, levels, points, 2)."""
    return _attend(*full(value, locations, weights), shapes.tolist()).to(value.dtype)


@operator
def ms_deform_attn_backward(*tensors: Tensor, **unused) -> None:
    """Gradients of :func:`ms_deform_attn_forward` with respect to its three inputs."""
    value, shapes, _starts, locations, weights, grad_output, *grads = tensors
    attend = partial(_attend, shapes=shapes.tolist())
    put_gradients(attend, [value, locations, weights], grad_output, *grads)
