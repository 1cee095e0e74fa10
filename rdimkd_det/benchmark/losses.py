"""Losses alone, all on the same maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..losses import RdimKDLoss
from ..projections import RandomProjection
from .subject import Subject

VARIANTS = ('plain', 'standardize', 'plain-adapter', 'standardize-adapter')
# Of the teacher's maps: this package's teacher hands over channels_last, others' contiguous ones.
LAYOUTS = ('as handed over', 'contiguous')


def loss_maps(subject: Subject, layout: str) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of the student and of the teacher at the first tap, in the precision of a step.

    The student's are noise, so that they have the teacher's channels, which some losses need.

    Args:
        subject (Subject): The two networks and their batch.
        layout (str): Of :data:`LAYOUTS`.
    """
    tap, teacher = next(iter(subject.teacher_maps().items()))
    if layout == 'contiguous':
        teacher = [maps.contiguous() for maps in teacher]
    like = subject.student_maps()[tap][0]
    student = [
        torch.randn(maps.shape, dtype=like.dtype, device=like.device).requires_grad_()
        for maps in teacher
    ]
    return student, teacher


def rdimkd_variants(dim: int) -> dict[str, Callable[[Sequence[int]], RdimKDLoss]]:
    """Name of each of :data:`VARIANTS` to what builds it, given the channels of each level.

    Args:
        dim (int): Number d of directions.
    """
    return {name: partial(_rdimkd, name, dim) for name in VARIANTS}


def _rdimkd(name: str, dim: int, channels: Sequence[int]) -> RdimKDLoss:
    projections = [RandomProjection(dim, c, level) for level, c in enumerate(channels)]
    normalize = 'standardize' if name.startswith('standardize') else None
    loss = RdimKDLoss(projections, channels, channels, len(channels), normalize)
    if name.endswith('-adapter'):
        loss.adapters = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels)
    return loss


def loss_pieces(
    subject: Subject, builders: Mapping[str, Callable[[Sequence[int]], nn.Module]], layout: str
) -> dict[str, Callable]:
    """Each loss, forward and backward.

    Args:
        subject (Subject): The two networks and their batch.
        builders (Mapping[str, Callable]): Name to what builds a loss, given the channels of each
            level; called with both lists of maps it gives a tensor or a dict of them.
        layout (str): Of :data:`LAYOUTS`.
    """
    student, teacher = loss_maps(subject, layout)
    channels = [maps.shape[1] for maps in teacher]

    def piece(build: Callable) -> Callable:
        loss = build(channels).to(subject.device)
        leaves = [*student, *loss.parameters()]

        def forward_and_backward() -> None:
            with subject.in_training():
                value = loss(student, teacher)
            value = sum(value.values()) if isinstance(value, dict) else value
            torch.autograd.grad(value, leaves)

        return forward_and_backward

    return {name: piece(build) for name, build in builders.items()}
