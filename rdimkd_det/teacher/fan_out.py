"""Brings a teacher's maps to the strides of the student: scale of its input, resized levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import log2
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..features import Level

WAYS = ('up', 'same', 'down')
# Largest factor, as a power of 2, by which an input is resized to give a map a student's stride.
LARGEST_CHANGE = 0.5


class Resizing(NamedTuple):
    """A map to be made: from which level of the teacher, and with which stride."""

    level: Level
    stride: int


def choose_scale(levels: Iterable[Level], student_strides: Iterable[int]) -> Fraction:
    """Return the scale of the teacher's input at which its finest stride is one of the student's.

    It is 1 if the strides fit, or if no scale near 1 makes them fit. A patch of 14 pixels is one of
    16 pixels of the student at 0.875.
    """
    own, wanted = {level.stride for level in levels}, {*student_strides}
    if own & wanted or not wanted:
        return Fraction(1)
    finest = min(own)
    nearest = min(wanted, key=lambda stride: abs(log2(stride / finest)))
    near = abs(log2(nearest / finest)) <= LARGEST_CHANGE
    return Fraction(finest, nearest) if near else Fraction(1)


def in_student_pixels(levels: Sequence[Level], scale: Fraction) -> list[Level]:
    """Return the levels of a teacher whose input is scaled, with strides in the student's pixels.

    Strides must be whole numbers.
    """
    found = []
    for level in levels:
        stride = level.stride / scale
        if stride.denominator > 1:
            near = max(1, round(stride))
            whole = [f'{level.stride / it:.6g} for {it}' for it in (near, near + 1)]
            raise ConfigError(
                f'teacher: input_scale={float(scale):g} makes of its stride of {level.stride} '
                f"pixels one of {float(stride):g} of the student's; give a scale that makes it a "
                f'whole number, e.g. {" or ".join(whole)}.'
            )
        found.append(replace(level, stride=int(stride)))
    return found


def plan_levels(
    levels: Sequence[Level], ways: Mapping[int, str] | None, student_strides: Sequence[int]
) -> list[Resizing]:
    """Plan a map for each stride of the student, or for those that ``ways`` names.

    ``ways`` maps the student's strides to 'up' (resize the next coarser map), 'same' or 'down' (the
    next finer map). With None, a stride that the teacher lacks gets the nearest one's map.
    """
    of_stride = {level.stride: level for level in levels}
    if ways is None:
        nearest = {
            stride: min(of_stride, key=lambda own: abs(log2(own / stride)))
            for stride in sorted(student_strides)
        }
        return [Resizing(of_stride[own], stride) for stride, own in nearest.items()]
    unknown = [stride for stride in ways if student_strides and stride not in student_strides]
    if unknown:
        raise ConfigError(
            f'teacher: levels has the stride {unknown[0]}, which the student has not; it has '
            f'{sorted(student_strides)}.'
        )
    return [_named(of_stride, stride, ways[stride]) for stride in sorted(ways)]


def _named(of_stride: Mapping[int, Level], stride: int, way: str) -> Resizing:
    candidates = {
        'up': [own for own in sorted(of_stride) if own > stride],
        'same': [own for own in of_stride if own == stride],
        'down': [own for own in sorted(of_stride, reverse=True) if own < stride],
    }[way]
    if not candidates:
        raise ConfigError(
            f"teacher: levels has {stride}: '{way}', and the teacher's strides are "
            f"{sorted(of_stride)} of the student's pixels: 'up' needs a larger one, 'down' a "
            f"smaller one, 'same' this one."
        )
    return Resizing(of_stride[candidates[0]], stride)


def planned_levels(plan: Sequence[Resizing]) -> list[Level]:
    """Return the levels that a plan makes."""
    return [replace(step.level, index=index, stride=step.stride) for index, step in enumerate(plan)]


def resize_levels(maps: Sequence[Tensor], plan: Sequence[Resizing]) -> list[Tensor]:
    """Make the maps of a plan: up bilinear, down by average pooling."""
    return [_resized(maps[step.level.index], step.level.stride, step.stride) for step in plan]


def _resized(maps: Tensor, stride: int, wanted: int) -> Tensor:
    if stride == wanted:
        return maps
    if wanted % stride == 0:
        return F.avg_pool2d(maps, wanted // stride, ceil_mode=True, count_include_pad=False)
    # Fractions too, as of a patch of 14 pixels.
    return F.interpolate(
        maps,
        scale_factor=stride / wanted,
        mode='bilinear',
        align_corners=False,
        recompute_scale_factor=False,
        antialias=wanted > 2 * stride,
    )


def describe_plan(plan: Sequence[Resizing]) -> str:
    """Return for each stride of a plan where its map comes from, as text."""
    texts = []
    for level, stride in plan:
        way = f'{"up" if level.stride > stride else "down"} from {level.stride}'
        texts.append(f'{stride} {"as it is" if level.stride == stride else way}')
    return ', '.join(texts)
