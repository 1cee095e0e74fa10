"""``DistillHook``: prepares distillation before training, and keeps its state in checkpoints."""

from __future__ import annotations

import logging

from mmdet.registry import HOOKS
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu

from .calibration import calibration_batches, fit_projections, preserved_random_state
from .distillation import Distillation
from .distiller import RdimKDDistiller, distilled_student
from .errors import ConfigError


@HOOKS.register_module()
class DistillHook(Hook):
    """Fits the projections before training; saves and restores the distillation state.

    Args:
        calibration_images (int): Training images, on all ranks together, from which projections
            learn. Defaults to 256.
        seed (int): Seed of the choice of these images. Defaults to 0.

    Raises:
        ConfigError: ``calibration_images`` is below 1, or the model is not a distilled one.
    """

    priority = 'NORMAL'

    def __init__(self, calibration_images: int = 256, seed: int = 0) -> None:
        if isinstance(calibration_images, bool) or not isinstance(calibration_images, int):
            calibration_images = 0
        if calibration_images < 1:
            raise ConfigError('DistillHook: calibration_images must be a whole number of 1 or more.')
        self.calibration_images = calibration_images
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Load the teacher, fit what is not fitted, make all ranks equal, and tell the levels.

        Args:
            runner (Runner): The runner, its model initialised and a checkpoint resumed.
        """
        model = distilled_student(runner.model)
        distill = model.distill
        if distill.active:
            distill.teacher.build()
            if not all(loss.fitted for _, loss in distill.items()):
                self._fit(runner, model)
        _broadcast(distill)
        _update_averaged_models(runner, distill)
        runner.logger.info('RdimKD: teacher %s', distill.teacher.checkpoint)
        runner.logger.info('RdimKD: %s', distill.bridge)
        for line in distill.describe():
            runner.logger.info('RdimKD: %s', line)

    def _fit(self, runner: Runner, model: RdimKDDistiller) -> None:
        runner.logger.info(
            'RdimKD: fitting the projections on %d training images', self.calibration_images
        )
        with preserved_random_state():
            batches = calibration_batches(
                runner.train_dataloader, self.calibration_images, self.seed
            )
            fit_projections(model.distill, model.data_preprocessor, batches)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the state beside the student's.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): Gets the entry 'distill'.
        """
        distill = distilled_student(runner.model).distill
        checkpoint['distill'] = weights_to_cpu(distill.state_dict())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the state when training resumes.

        Args:
            runner (Runner): The runner.
            checkpoint (dict): The loaded checkpoint.
        """
        if not runner._resume:  # testing, or training anew from given weights
            return
        if 'distill' not in checkpoint:
            runner.logger.log(
                logging.WARNING,
                'RdimKD: the checkpoint holds no distillation state; the projections are fitted '
                'and the adapters start anew.',
            )
            return
        try:
            distilled_student(runner.model).distill.load_state_dict(checkpoint['distill'])
        except RuntimeError as error:
            raise ConfigError(
                f'DistillHook: the checkpoint was made with another teacher or other losses than '
                f'this config; resume with the config of its run. {_first_problem(error)}'
            ) from error


def _broadcast(distill: Distillation) -> None:
    # The Runner sends state_dict() to all ranks, and DDP no buffers; neither covers these.
    for tensor in distill.state_dict().values():
        broadcast(tensor)


def _update_averaged_models(runner: Runner, distill: Distillation) -> None:
    # EMAHook copied the model in before_run, when a fitted basis had no shape yet.
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            hook.ema_model.module.distill.load_state_dict(distill.state_dict())


def _first_problem(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).split('\n')]
    return lines[1] if len(lines) > 1 else lines[0]
