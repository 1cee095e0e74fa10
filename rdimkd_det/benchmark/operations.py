"""Operation counts of distillation, which depend on networks and input, not on the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from .subject import Subject


def count_operations(subject: Subject) -> dict[str, float]:
    """Count the operations of a plain and a distilled step, and of the teacher's forward pass.

    Multiplications and additions count separately; only matrix products and convolutions count.

    Args:
        subject (Subject): The two networks and their batch.

    Returns:
        dict[str, float]: 'student_step', 'distilled_step' and 'teacher' (backbone and neck) in
        units of 10^9; 'teacher_to_student' and 'distilled_to_student', their ratios to the
        student's step.
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
    """Count the operations of a piece of work.

    Args:
        piece (Callable): A function without arguments.
    """
    torch.manual_seed(0)  # two-stage detectors sample the regions that they train on
    with _deformable_convolutions() as hidden, FlopCounterMode(display=False) as counter:
        piece()
    return counter.get_total_flops() + sum(hidden)


@contextmanager
def _deformable_convolutions() -> Iterator[list[int]]:
    """Count the operations of mmcv's own convolutions, which PyTorch's counter does not see.

    Each counts as an ordinary convolution of its shape; with gradient three times, for the
    gradients of input and weight.
    """
    counts: list[int] = []

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        if isinstance(module, (DeformConv2d, ModulatedDeformConv2d)):
            once = 2 * output.numel() * module.weight[0].numel()
            counts.append(3 * once if output.requires_grad else once)

    handle = register_module_forward_hook(note)
    try:
        yield counts
    finally:
        handle.remove()
