"""Checks that the distillation losses are finite, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.dist import all_reduce
from torch import Tensor


class FiniteCheck:
    """Notes which losses of a step are not finite.

    Args:
        same_on_ranks (bool): Whether every rank has the same losses, and need not ask the others.

    Attributes:
        deferred (bool): Whether somebody asks later, with :func:`take_broken`, when the host waits
            for the device anyway. Else a loss that is not finite is an error at once.
    """

    def __init__(self, same_on_ranks: bool) -> None:
        self.deferred = False
        self._same_on_ranks = same_on_ranks
        self._names: list[str] = []
        self._broken: Tensor | None = None  # on the device, one number per loss

    def note(self, losses: Mapping[str, Tensor]) -> None:
        """Note the losses of a step; the same names each time.

        Args:
            losses (Mapping[str, Tensor]): Name to 0-dim loss.

        Raises:
            FloatingPointError: Not deferred, and a loss is not finite; names it.
        """
        broken = (~torch.stack([loss.detach() for loss in losses.values()]).isfinite()).float()
        if self.deferred and not self._same_on_ranks:  # all ranks stop, or none
            all_reduce(broken, 'max')
        if self._broken is not None:
            broken = broken.maximum(self._broken)
        self._names, self._broken = list(losses), broken
        if not self.deferred:
            stop_if_broken([self])

    def take(self) -> tuple[list[str], Tensor | None]:
        """Names and flags since the last time, which are told once."""
        broken, self._broken = self._broken, None
        return self._names, broken


def take_broken(checks: Iterable[FiniteCheck]) -> list[str]:
    """Names of the losses that are not finite; each is told once. One wait for the device.

    Args:
        checks (Iterable[FiniteCheck]): One per teacher.
    """
    noted = [taken for taken in (check.take() for check in checks) if taken[1] is not None]
    if not noted:
        return []
    flags = torch.cat([broken for _, broken in noted]).tolist()
    names = [name for of_check, _ in noted for name in of_check]
    return [name for name, broken in zip(names, flags) if broken]


def stop_if_broken(
    checks: Iterable[FiniteCheck], say_what_is_kept: Callable[[], str] = str
) -> None:
    """End a training whose losses are not finite.

    Args:
        checks (Iterable[FiniteCheck]): One per teacher.
        say_what_is_kept (Callable): Says from where such a training can go on. Defaults to nothing.

    Raises:
        FloatingPointError: Names them, and says what is kept.
    """
    names = take_broken(checks)
    if not names:
        return
    kept = say_what_is_kept()
    raise FloatingPointError(
        f'{", ".join(names)} is not finite: the feature maps of student or teacher hold NaN or '
        f'infinity at that level. {kept + " " if kept else ""}Lower the learning rate, train '
        f"without fp16, or set nonfinite='skip' in DistillHook."
    )
