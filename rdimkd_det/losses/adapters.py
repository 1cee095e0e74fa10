"""Adapters: the learned 1x1 convolutions between a student's channels and its teacher's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import project


def new_adapter(in_channels: int, out_channels: int, level: int) -> nn.Conv2d:
    """Create an adapter C_s -> C_t with weights that depend only on the level.

    A separate generator draws the weights. The global random state, and with it the student's
    initialisation and data order, stays the same as without distillation.
    """
    conv = torch.nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, kernel_size=1)
    generator = torch.Generator().manual_seed(level)
    nn.init.kaiming_normal_(conv.weight, nonlinearity='linear', generator=generator)
    nn.init.zeros_(conv.bias)
    return conv


def adapt(student: Tensor, adapter: nn.Module) -> Tensor:
    """Compute the adapted map ``r(F_s)``, (N, C_t, H, W), in the map's own precision."""
    if isinstance(adapter, nn.Identity):
        return student
    return F.conv2d(student, adapter.weight.to(student.dtype), adapter.bias.to(student.dtype))


def project_adapted(
    student: Tensor, adapter: nn.Module, basis: Tensor, with_bias: bool = True
) -> Tensor:
    """Compute the coordinates ``K^T r(F_s)`` (N, d, H * W) with the adapter folded into the basis.

    One product takes the student's map from C_s channels to d; the adapted map with C_t channels
    is never materialised.
    """
    coordinates = project(student, fold_adapter(adapter, basis))
    if isinstance(adapter, nn.Identity) or not with_bias:
        return coordinates
    return coordinates + (adapter.bias.to(basis.dtype) @ basis)[:, None]


def fold_adapter(adapter: nn.Module, basis: Tensor) -> Tensor:
    """Fold an adapter's weight, without its bias, into a basis (C_t, d): (C_s, d)."""
    if isinstance(adapter, nn.Identity):
        return basis
    return adapter.weight.flatten(1).t().to(basis.dtype) @ basis


def zero_of_bias(adapter: nn.Module) -> Tensor | float:
    """Return 0, with a gradient of 0 for the bias, which a standardised loss does not use.

    The bias stays a parameter, so that the 'distill' entry and the optimizer state of earlier
    checkpoints still load.
    """
    return 0 if isinstance(adapter, nn.Identity) else zero_of([adapter.bias])


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """Return 0, with a gradient of 0 for the parameters, so that DDP finds none of them unused."""
    return 0 * sum(parameter.sum() for parameter in parameters)
