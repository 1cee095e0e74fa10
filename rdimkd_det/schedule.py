"""Schedule of the distillation weight over a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ConfigError
from .options import check_names, is_amount

DECAYS = (None, 'linear', 'cosine')
# schedule='fade', see docs/results.md: the last third of a training runs without a teacher.
FADE = {'decay': 'linear', 'decay_begin': 1 / 2, 'stop': 2 / 3, 'relative': True}


@dataclass(frozen=True)
class Schedule:
    """A factor on every loss weight: linear warm-up, a plateau, decay to 0, stop.

    All times are in epochs (``by_epoch``, fractions allowed), in iterations, or shares of the
    training (``relative``).

    Args:
        warmup (float): Time over which the factor grows from 0 to 1. Defaults to 0.
        decay (str, optional): 'linear' or 'cosine'; None keeps the factor at 1 until ``stop``.
            Defaults to None.
        decay_begin (float): Time at which the decay starts. Defaults to 0.
        stop (float, optional): Time at which the decay ends and from which the factor stays 0.
            Defaults to None: the decay ends with the training.
        by_epoch (bool): Whether times are in epochs. Defaults to True.
        relative (bool): Whether times are shares of the training instead, from 0 to 1. Defaults to
            False.

    Raises:
        ConfigError: A time is negative, above 1 as a share, or out of order, or the decay is
            unknown.

    Example:
        >>> from rdimkd_det.schedule import Schedule
        >>> schedule = Schedule(warmup=1, decay='linear', decay_begin=2, stop=4)
        >>> [schedule.factor(time, end=6) for time in (0, 0.5, 1, 3, 4, 5)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    warmup: float = 0
    decay: str | None = None
    decay_begin: float = 0
    stop: float | None = None
    by_epoch: bool = True
    relative: bool = False

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ConfigError(f'DistillHook: decay must be one of {DECAYS}, got {self.decay!r}.')
        for name in ('warmup', 'decay_begin', 'stop'):
            time = getattr(self, name)
            if not (is_amount(time) or (name == 'stop' and time is None)):
                raise ConfigError(f'DistillHook: {name} must be 0 or more, got {time!r}.')
            if self.relative and time is not None and time > 1:
                raise ConfigError(
                    f'DistillHook: {name} must be at most 1, a share of the training '
                    f'(relative=True), got {time!r}.'
                )
        if self.decay_begin and self.decay is None:
            raise ConfigError(
                f"DistillHook: decay_begin={self.decay_begin} needs decay='linear' or 'cosine'."
            )
        if self.stop is not None and self.stop < max(self.warmup, self.decay_begin):
            raise ConfigError(
                f'DistillHook: stop={self.stop} comes before the warm-up ends ({self.warmup}) or '
                f'the decay begins ({self.decay_begin}).'
            )

    def factor(self, time: float, end: float) -> float:
        """Return the factor at a time.

        Args:
            time (float): Epochs, iterations, or share of the training completed.
            end (float): Length of the training in the same unit.

        Returns:
            float: The factor, from 0 to 1.
        """
        stop = end if self.stop is None else self.stop
        if self.stop is not None and time >= stop:
            return 0.0
        warm = min(1.0, time / self.warmup) if self.warmup else 1.0
        if self.decay is None or time <= self.decay_begin:
            return warm
        done = min(1.0, (time - self.decay_begin) / max(stop - self.decay_begin, 1e-12))
        left = 1 - done if self.decay == 'linear' else (1 + math.cos(math.pi * done)) / 2
        return warm * left

    def beyond(self, end: float) -> list[str]:
        """Return the times that a training of this length does not reach."""
        times = ('warmup', 'decay_begin', 'stop')
        return [f'{it}={time:g}' for it in times if (time := getattr(self, it) or 0) > end]

    @property
    def constant(self) -> bool:
        """bool: Whether the factor is always 1."""
        return not self.warmup and self.decay is None and self.stop is None

    def stopped(self, time: float) -> bool:
        """Check whether the factor stays 0 from this time on."""
        return self.stop is not None and time >= self.stop


def build_schedule(entry: dict | str | None) -> Schedule:
    """Build a schedule from a config entry: its options, 'fade', or None for a constant weight.

    Raises:
        ConfigError: The entry is none of these, has an unknown option or an invalid value.
    """
    options = FADE if entry == 'fade' else {} if entry is None else entry
    if not isinstance(options, Mapping):
        raise ConfigError(f"DistillHook: schedule must be a dict or 'fade', got {entry!r}.")
    check_names('DistillHook: schedule', options, Schedule.__dataclass_fields__)
    return Schedule(**options)
