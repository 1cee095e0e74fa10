"""The maps that a loss compares: their checks and resizing."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..functional import working_dtype

RESIZE_MODES = (None, 'student', 'teacher')


class ComparedMaps(NamedTuple):
    """What the loss of a tap compares: maps matched by stride, cropped to their common part."""

    tap: str  # path of the student's module
    loss: nn.Module
    student: tuple[Tensor, ...]  # (N, C_s, H, W), one per level
    teacher: tuple[Tensor, ...]  # (N, C_t, H, W), of the same levels
    # Per level what `positions_in_images` returns; None where no level has padding to leave out.
    positions: list[Tensor | None] | None


def check_pair(
    who: str, student: Tensor, teacher: Tensor, channels: tuple[int, int], resized: bool
) -> None:
    """Raise a ValueError if the maps have other channels (C_s, C_t) or differ in batch or size."""
    shapes = f'student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}'
    for side, feats, expected in zip(('student', 'teacher'), (student, teacher), channels):
        if feats.dim() != 4 or feats.shape[1] != expected:
            raise ValueError(
                f'{who}: {shapes}: expected (N, {expected}, H, W) of the {side}; '
                f'set {side}_channels to what the model gives.'
            )
    if student.shape[0] != teacher.shape[0]:
        raise ConfigError(
            f'{who}: {shapes} differ in batch size; a module that sees an image several times in '
            f'training, as the branches of a TridentNet, cannot be tapped.'
        )
    if not resized and student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"{who}: {shapes} differ in size; set resize='student' or resize='teacher'."
        )


def resized(feats: Tensor, like: Tensor) -> Tensor:
    """Resize a map (N, C, H, W) to the size of another."""
    feats = feats.to(working_dtype(feats))
    return F.interpolate(feats, size=like.shape[2:], mode='bilinear', align_corners=False)
