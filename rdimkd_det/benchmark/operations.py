"""Operation counts of distillation, which depend on networks and input, not on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, deform_conv, modulated_deform_conv
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from .subject import Subject

CONVOLUTIONS = (deform_conv, modulated_deform_conv)


def count_operations(subject: Subject) -> dict[str, float]:
    """Count the operations of a plain and a distilled step, and of the teacher's forward pass.

    Multiplications and additions count separately, in units of 10^9; only matrix products and
    convolutions count. The ratios are to the student's step.
    """
    pieces = {
        'student_step': subject.plain_step,
        'distilled_step': subject.distilled_step,
        'teacher': subject.teacher_maps,
    }
    counts = {name: count(piece) for name, piece in pieces.items()}
    return {
        **{name: round(number / 1e9, 6) for name, number in counts.items()},
        'teacher_to_student': round(counts['teacher'] / counts['student_step'], 4),
        'distilled_to_student': round(counts['distilled_step'] / counts['student_step'], 4),
    }


def count(piece: Callable) -> int:
    """Count the operations of a piece of work."""
    torch.manual_seed(0)  # two-stage detectors sample the regions that they train on
    with _deformable_convolutions() as hidden, FlopCounterMode(display=False) as counter:
        piece()
    return counter.get_total_flops() + sum(hidden)


@contextmanager
def _deformable_convolutions() -> Iterator[list[int]]:
    """Count the operations of mmcv's deformable convolutions, compiled or not, in the same way.

    Each counts as an ordinary convolution of its shape; with gradient three times, for the
    gradients of input and weight. PyTorch's counter sees none of what they do.
    """
    counts: list[int] = []

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, (DeformConv2d, ModulatedDeformConv2d)):
            once = 2 * output.numel() * module.weight[0].numel()
            counts.append(3 * once if output.requires_grad else once)

    handle = register_module_forward_hook(note)
    hidden = [mock.patch.object(it, 'ext_module', _Unseen(it.ext_module)) for it in CONVOLUTIONS]
    try:
        with hidden[0], hidden[1]:
            yield counts
    finally:
        handle.remove()


class _Unseen:
    """Operators of ``mmcv._ext`` whose work is hidden from PyTorch's counter."""

    def __init__(self, operators: ModuleType) -> None:
        self.operators = operators

    def __getattr__(self, name: str) -> Callable:
        def call(*args, **kwargs) -> object:
            with _disable_current_modes():
                return getattr(self.operators, name)(*args, **kwargs)

        return call
