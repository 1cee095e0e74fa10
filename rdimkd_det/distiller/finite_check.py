"""Checks that the distillation losses are finite, without an extra wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.dist import all_reduce
from torch import Tensor


class FiniteCheck:
    """Records which losses of a step are not finite.

    :meth:`note` raises at once, unless the check is ``deferred``: then a caller checks later with
    :func:`take_broken`, at a point where the host waits for the device anyway. The ranks exchange
    the result unless all have the same losses.
    """

    def __init__(self, same_on_ranks: bool) -> None:
        self.deferred = False
        self._same_on_ranks = same_on_ranks
        self._names: list[str] = []
        self._broken: Tensor | None = None  # on the device: 1 per loss that is not finite, else 0

    def note(self, losses: Mapping[str, Tensor]) -> None:
        """Record the losses of a step, which have the same names at every step."""
        broken = (~torch.stack([loss.detach() for loss in losses.values()]).isfinite()).float()
        if self.deferred and not self._same_on_ranks:  # so that all ranks stop together
            all_reduce(broken, 'max')
        if self._broken is not None:
            broken = broken.maximum(self._broken)
        self._names, self._broken = list(losses), broken
        if not self.deferred:
            stop_if_broken([self])

    def take(self) -> list[str]:
        """Return the losses recorded as not finite since the last call; waits for the device."""
        broken, self._broken = self._broken, None
        flags = () if broken is None else broken.tolist()
        return [name for name, is_broken in zip(self._names, flags) if is_broken]


def take_broken(checks: Iterable[FiniteCheck]) -> list[str]:
    """Return what :meth:`FiniteCheck.take` returns of all checks, one per teacher."""
    return [name for check in checks for name in check.take()]


def stop_if_broken(
    checks: Iterable[FiniteCheck], describe_checkpoints: Callable[[], str] = str
) -> None:
    """Raise a ``FloatingPointError`` that names the losses recorded as not finite, if any.

    ``describe_checkpoints`` returns a sentence on the checkpoint to resume from.
    """
    names = take_broken(checks)
    if not names:
        return
    kept = describe_checkpoints()
    raise FloatingPointError(
        f'{", ".join(names)} is not finite: the feature maps of student or teacher hold NaN or '
        f'infinity at that level. {kept + " " if kept else ""}Lower the learning rate, train '
        f"without fp16, or set nonfinite='skip' in DistillHook."
    )
