"""What a distillation loss that is not finite does to a training: end it, or skip the step."""

from __future__ import annotations

from mmengine.runner import Runner

from ..distiller import distilled_student


class StepSkipper:
    """Leaves out the optimizer's steps whose distillation losses are not finite, and counts them.

    Args:
        runner (Runner): Runner of a distilled training; its ``optim_wrapper`` is changed.
    """

    def __init__(self, runner: Runner) -> None:
        self.num_skipped = 0
        self._runner = runner
        self._distill = distilled_student(runner.model).distill
        self._update_params = runner.optim_wrapper.update_params
        for part in self._distill.parts:
            part.skip_nonfinite = True
        runner.optim_wrapper.update_params = self._update_unless_broken

    def _update_unless_broken(self, *args, **kwargs) -> None:
        broken = [name for part in self._distill.parts for name in part.take_nonfinite()]
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
