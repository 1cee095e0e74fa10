"""``Placement``: how a teacher's maps lie on the student's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import chain
from math import lcm

import torch
from torch import Tensor, nn

from ..channels import image_channels
from ..errors import ConfigError
from ..features import (
    SIZE_ERRORS,
    Level,
    ProbeError,
    leaves_edges_out,
    probe_levels,
    size_divisor,
)
from .fan_out import Resizing, choose_scale, in_student_pixels, plan_levels, planned_levels
from .source import Source
from .strides import check_alike, measured_strides

# Of a scale, as a fraction: 0.3333 is a third.
LARGEST_DENOMINATOR = 1000
# Positions by which a map may be larger or smaller than its image; layers round, or do not pad.
LARGEST_GAP = 2


class Placement:
    """Measures a network on a blank image, and plans how its maps meet the student's.

    ``student_strides`` are those of all tapped levels of the student, () if it is not known. The
    student's pixels are those of the images that the data pipeline makes, of which it gets smaller
    ones where there is an ``image_scale``.
    """

    def __init__(
        self,
        source: Source,
        taps: Sequence[str],
        student_strides: Sequence[int] = (),
        image_scale: int = 1,
    ) -> None:
        self.source = source
        self.taps = taps
        self.student_strides = sorted({stride * image_scale for stride in student_strides})
        self.ways = source.levels and {
            stride * image_scale: way for stride, way in source.levels.items()
        }

    @property
    def levels(self) -> dict[str, list[Level]]:
        """dict[str, list[Level]]: The levels by tap, with strides in the student's pixels."""
        if self.plans:
            return {tap: planned_levels(plan) for tap, plan in self.plans.items()}
        return self._placed

    @property
    def divisor(self) -> int:
        """int: Number of the teacher's own pixels that the sides of its images are multiples of."""
        return self._measured[1]

    @property
    def image_channels(self) -> int:
        """int: Channels of the images that the network takes."""
        return self._measured[2]

    @cached_property
    def scale(self) -> Fraction:
        """Fraction: Side of the teacher's images over that of the student's."""
        if self.source.input_scale is not None:
            return Fraction(self.source.input_scale).limit_denominator(LARGEST_DENOMINATOR)
        wanted = [s for s, way in (self.ways or {}).items() if way == 'same']
        return choose_scale(chain(*self._measured[0].values()), wanted or self.student_strides)

    @cached_property
    def plans(self) -> dict[str, list[Resizing]]:
        """dict[str, list[Resizing]]: The maps to make at each tap; {} if none are resized."""
        if self.ways is None and not self.source.fan_out:
            return {}
        return {
            tap: plan_levels(levels, self.ways, self.student_strides)
            for tap, levels in self._placed.items()
        }

    def check_positions(
        self, outputs: Mapping[str, Sequence[Tensor]], image: Sequence[int]
    ) -> None:
        """Check that the maps of an image cover it, as their strides tell.

        Those of a module that resizes its images itself do not: of torchvision's detectors, or of
        one that resizes to what a vision transformer takes.
        """
        for tap, levels in self._measured[0].items():
            wanted = {step.level.index for step in self.plans.get(tap, ())} or {
                level.index for level in self._placed[tap] if level.stride in self.student_strides
            }
            for level, maps in zip(levels, outputs[tap]):
                covered = [number * level.stride for number in maps.shape[2:]]
                apart = max(abs(a - b) for a, b in zip(covered, image))
                if level.index in wanted and apart > LARGEST_GAP * level.stride:
                    raise ConfigError(
                        f'teacher: {self.source.name} makes {"x".join(map(str, maps.shape[2:]))} '
                        f'positions of an image of {"x".join(map(str, image))} pixels, which do '
                        f'not lie on it with the stride of {level.stride} that a square image of '
                        f'{level.image} has: it resizes images itself; take the module behind that.'
                    )

    @cached_property
    def _placed(self) -> dict[str, list[Level]]:
        """dict[str, list[Level]]: The network's own levels, in the student's pixels."""
        levels = self._measured[0].items()
        return {tap: in_student_pixels(of_tap, self.scale) for tap, of_tap in levels}

    @cached_property
    def _measured(self) -> tuple[dict[str, list[Level]], int, int]:
        """tuple: The network's levels in its own pixels, the divisor of its images' sides, and
        their channels.
        """
        divisor = 1
        if self.source.model is not None:  # a detector; a module has no padding of its own
            divisor = getattr(self.source.build_preprocessor(), 'pad_size_divisor', 1)
        if self.source.built_on_meta:
            try:
                with torch.device('meta'):
                    return self._look_at(self.source.build(self.taps), divisor)
            except SIZE_ERRORS as error:
                # Swin reads values of tensors while it is built, and deformable convolution has no
                # kernel for the meta device: build these on a real device and discard them.
                if isinstance(error, ConfigError) and not isinstance(error, ProbeError):
                    raise
        return self._look_at(self.source.build(self.taps), divisor)

    def _look_at(self, network: nn.Module, divisor: int) -> tuple[dict[str, list[Level]], int, int]:
        levels = probe_levels(network.eval(), self.taps)
        if self.source.model is None:
            check_alike(network, levels)
            levels = measured_strides(network, levels)
        first = levels[self.taps[0]]
        divisor = size_divisor(network, divisor, first)
        if self.source.model is None and leaves_edges_out(network, self.taps[0], first):
            divisor = lcm(divisor, *(level.stride for level in first))
        return levels, divisor, image_channels(network)
