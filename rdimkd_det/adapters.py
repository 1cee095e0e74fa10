"""Adapters: the learned 1x1 convolutions between a student's channels and its teacher's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .functional import project


def new_adapter(in_channels: int, out_channels: int, level: int) -> nn.Conv2d:
    """An adapter C_s -> C_t, the same at every call.

    Drawn from a generator of its own: building a loss leaves the global random state, and so the
    student's own initialisation and data order, as they are without distillation.

    Args:
        in_channels (int): C_s.
        out_channels (int): C_t.
        level (int): Seed.
    """
    conv = torch.nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, kernel_size=1)
    generator = torch.Generator().manual_seed(level)
    nn.init.kaiming_normal_(conv.weight, nonlinearity='linear', generator=generator)
    nn.init.zeros_(conv.bias)
    return conv


def project_adapted(student: Tensor, adapter: nn.Module, basis: Tensor) -> Tensor:
    """Coordinates ``K^T r(F_s)`` with the adapter folded into the basis.

    The student's map goes from C_s channels to d in one product; the adapted map with C_t
    channels is never made.

    Args:
        student (Tensor): Student's map (N, C_s, H, W).
        adapter (nn.Module): ``nn.Identity``, or the 1x1 convolution C_s -> C_t.
        basis (Tensor): Basis (C_t, d).

    Returns:
        Tensor: (N, d, H * W).
    """
    coordinates = project(student, folded(adapter, basis))
    if isinstance(adapter, nn.Identity):
        return coordinates
    return coordinates + (adapter.bias.to(basis.dtype) @ basis)[:, None]


def folded(adapter: nn.Module, basis: Tensor) -> Tensor:
    """The directions (C_s, d) of the student's own map that the adapter turns into the basis's.

    Args:
        adapter (nn.Module): ``nn.Identity``, or the 1x1 convolution C_s -> C_t; its bias is none of
            a direction.
        basis (Tensor): Basis (C_t, d).
    """
    if isinstance(adapter, nn.Identity):
        return basis
    return adapter.weight.flatten(1).t().to(basis.dtype) @ basis


def unused_bias(adapter: nn.Module) -> Tensor | float:
    """0, of the bias that a standardised loss does not see.

    What earlier checkpoints hold of it, in 'distill' and in the optimizer, has its place so.
    """
    return 0 if isinstance(adapter, nn.Identity) else zero_of([adapter.bias])


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """0, with a gradient of 0 for the parameters: DDP finds none of them unused."""
    return 0 * sum(parameter.sum() for parameter in parameters)
