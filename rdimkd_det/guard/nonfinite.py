"""What a distillation loss that is not finite does to a training: end it, or skip the step."""

from __future__ import annotations

from mmengine.runner import Runner

from ..distiller import distilled_student
from ..finite import FiniteCheck, take_broken


def deferred_checks(runner: Runner) -> list[FiniteCheck]:
    """The checks of a distilled training's losses, which the caller from now on has to ask.

    Args:
        runner (Runner): Runner of a distilled training.
    """
    checks = [part.finite for part in distilled_student(runner.model).distill.parts]
    for check in checks:
        check.deferred = True
    return checks


class StepSkipper:
    """Leaves out the optimizer's steps whose distillation losses are not finite, and counts them.

    Args:
        runner (Runner): Runner of a distilled training; its ``optim_wrapper`` is changed.
    """

    def __init__(self, runner: Runner) -> None:
        self.num_skipped = 0
        self._runner = runner
        self._checks = deferred_checks(runner)
        self._update_params = runner.optim_wrapper.update_params
        runner.optim_wrapper.update_params = self._update_unless_broken

    def _update_unless_broken(self, *args, **kwargs) -> None:
        # Before the backward pass, whose NaN would stay in gradients that are accumulated.
        broken = take_broken(self._checks)
        if not broken:
            return self._update_params(*args, **kwargs)
        self.num_skipped += 1
        self._runner.logger.warning(
            'RdimKD: iteration %d: %s not finite, its step is skipped (%d so far)',
            self._runner.iter + 1,
            ', '.join(broken),
            self.num_skipped,
        )
        self._runner.message_hub.update_scalar('train/rdimkd_skipped', self.num_skipped)
