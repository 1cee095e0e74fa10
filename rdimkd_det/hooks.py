"""``DistillHook``: prepares distillation before training and saves its state in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmdet.registry import HOOKS
from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch.utils.data import DataLoader

from .datasets.unlabelled import count_images, share_metainfo
from .distiller import RdimKDDistiller, distilled_student
from .distiller.distillation import Distillation
from .distiller.finite_check import FiniteCheck, stop_if_broken
from .distiller.inheritance import inherit_from_teacher
from .distiller.monitoring import effective_weights
from .errors import ConfigError
from .host.patches import name_unreadable_images
from .host.registry import register
from .options import is_whole_number
from .preflight.teacher_ap import log_teacher_ap
from .random_state import preserved_random_state
from .schedule import build_schedule
from .training.calibration import (
    batch_size,
    calibration_batches,
    default_calibration_images,
    fit_projections,
)
from .training.guard import (
    StepSkipper,
    batches_done,
    defer_checks,
    describe_last_finite,
    guard,
)
from .training.resumption import KEY, check_same_distillation, training_facts

NONFINITE = ('stop', 'skip')
FACTOR = 'train/rdimkd_factor'


@register(HOOKS)
class DistillHook(Hook):
    """Prepares distillation before training, schedules its weight, saves its state in checkpoints.

    Args:
        calibration_images (int, optional): Number of training images, over all ranks, to fit the
            projections on. Defaults to a tenth of the data set, at most 256, so that fitting takes
            at most 2 percent of an epoch; but at least 32, which takes longer on data sets of
            fewer than 320 images.
        seed (int): Seed of the random sample of these images. Defaults to 0.
        schedule (dict | str, optional): Options of :class:`rdimkd_det.schedule.Schedule`, e.g.
            ``dict(warmup=1, decay='cosine', decay_begin=8, stop=11)``; or 'fade', which lets the
            weights fall to 0 from a half to two thirds of the training. None keeps them constant.
            Defaults to None.
        nonfinite (str): What to do when a distillation loss is not finite: 'stop' ends the
            training with an error that names the level, 'skip' skips the optimizer step and counts
            it. Defaults to 'stop'.
        monitor_interval (int): Interval in iterations at which to log the loss weights and the
            share of the teacher's variance that the student explains, see
            :mod:`rdimkd_det.distiller.monitoring`; 0 for never. Defaults to 50.
        eval_teacher (bool): Whether to measure the teacher's AP on the validation data before
            training, and to log it; ``tools/report.py`` shows it. Defaults to False.

    Raises:
        ConfigError: ``calibration_images`` is below 1, ``nonfinite`` is unknown,
            ``monitor_interval`` is negative, or the schedule is invalid.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        calibration_images: int | None = None,
        seed: int = 0,
        schedule: dict | str | None = None,
        nonfinite: str = 'stop',
        monitor_interval: int = 50,
        eval_teacher: bool = False,
    ) -> None:
        if calibration_images is not None and not is_whole_number(calibration_images, least=1):
            raise ConfigError(
                'DistillHook: calibration_images must be a whole number of 1 or more.'
            )
        if nonfinite not in NONFINITE:
            raise ConfigError(
                f'DistillHook: nonfinite must be one of {NONFINITE}, got {nonfinite!r}.'
            )
        if not is_whole_number(monitor_interval, least=0):
            raise ConfigError('DistillHook: monitor_interval must be a whole number of 0 or more.')
        self.calibration_images = calibration_images
        self.seed = seed
        self.schedule = build_schedule(schedule)
        self.nonfinite = nonfinite
        self.monitor_interval = monitor_interval
        self.eval_teacher = eval_teacher
        self._to_stop_at: list[FiniteCheck] = []
        self._describe_checkpoints: Callable[[], str] = str
        self._skipper: StepSkipper | None = None
        self._facts: dict[str, str] = {}
        self._resumed = False
        self._shift = 0  # iterations to add, where a resumed training's epochs had another length
        # Here, before any data loader starts workers, which inherit it.
        name_unreadable_images()

    def before_run(self, runner: Runner) -> None:
        """Guard the training against interruptions, see :mod:`rdimkd_det.training.guard`."""
        guard(runner)

    def before_train(self, runner: Runner) -> None:
        """Load the teachers, fit unfitted projections, synchronise the ranks and log the levels."""
        model = distilled_student(runner.model)
        dataset = runner.train_dataloader.dataset
        share_metainfo(dataset)
        with_labels, without = count_images(dataset)
        if without:
            text = 'RdimKD: training on %d images with labels and %d without'
            runner.logger.info(text, with_labels, without)
        if self.nonfinite == 'skip':
            self._skipper = StepSkipper(runner)
        else:
            self._to_stop_at = defer_checks(runner)
            self._describe_checkpoints = partial(describe_last_finite, runner.work_dir)
        self._apply_schedule(runner, model.distill)
        end = runner.max_iters / self._unit(runner)
        if late := self.schedule.beyond(end):
            unit = 'epochs' if self.schedule.by_epoch else 'iterations'
            runner.logger.warning(
                "RdimKD: the training ends after %g %s, before %s of DistillHook's schedule",
                *(end, unit, ' and '.join(late)),
            )
        parts = [part for part in model.distill.per_teacher if part.has_weight]
        if parts and not self.schedule.stopped(self._time(runner)):
            for part in parts:
                part.prepare(runner.cfg)
            if not all(loss.fitted for part in parts for _, loss in part.items()):
                self.fit(model, runner.train_dataloader)
        self._facts = training_facts(model.distill)
        if not self._resumed:
            for path, count in inherit_from_teacher(model).items():
                runner.logger.info("RdimKD: '%s' starts from the teacher: %d tensors", path, count)
        # Neither the Runner, which sends `state_dict()`, nor DDP, which sends no buffers, does it.
        for tensor in model.distill.state_dict().values():
            broadcast(tensor)
        _update_averaged_models(runner, model.distill)
        for part in model.distill.per_teacher:
            for line in part.describe():
                runner.logger.info('RdimKD: %s', line)
        if self.eval_teacher:
            log_teacher_ap(runner, model)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Set the schedule's factor for this iteration; free the teachers once it stays 0."""
        if self._skipper is not None:
            self._skipper.start_step()
        if self._follows_epochs(runner):
            self._shift = runner.epoch * len(runner.train_dataloader) + batch_idx - runner.iter
        distill = distilled_student(runner.model).distill
        if self.every_n_train_iters(runner, self.monitor_interval):
            for part in distill.per_teacher:
                part.monitor.due = True
        if self.schedule.constant and FACTOR not in runner.message_hub.log_scalars:
            return  # a resumed training may have had a schedule, whose last factor stays logged
        factor = self._apply_schedule(runner, distill)
        runner.message_hub.update_scalar(FACTOR, factor)
        if self.schedule.stopped(self._time(runner)):
            for part in distill.per_teacher:
                if part.teacher.built:
                    part.teacher.release()
                    runner.logger.info('RdimKD: distillation is over, the teacher is freed')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Stop at a loss that is not finite; log loss weights and explained variance."""
        # Costs no extra wait: RuntimeInfoHook has just waited for the device to log the losses.
        stop_if_broken(self._to_stop_at, self._describe_checkpoints)
        if not self.every_n_train_iters(runner, self.monitor_interval):
            return
        for part in distilled_student(runner.model).distill.per_teacher:
            scalars = part.monitor.take()
            for _, loss in part.items():
                scalars.update(effective_weights(loss))
            for name, value in scalars.items():
                runner.message_hub.update_scalar(f'train/{name}', value)

    def _apply_schedule(self, runner: Runner, distill: Distillation) -> float:
        factor = self.factor_at(runner, runner.iter)
        distill.set_factor(factor)
        return factor

    def factor_at(self, runner: Runner, iteration: int) -> float:
        """Return the schedule's factor after a number of iterations."""
        unit = self._unit(runner)
        return self.schedule.factor((iteration + self._shift) / unit, runner.max_iters / unit)

    def _time(self, runner: Runner) -> float:
        return (runner.iter + self._shift) / self._unit(runner)

    def _follows_epochs(self, runner: Runner) -> bool:
        by_epoch = self.schedule.by_epoch or self.schedule.relative
        return by_epoch and isinstance(runner.train_loop, EpochBasedTrainLoop)

    def _unit(self, runner: Runner) -> float:
        """Return the number of iterations in the schedule's unit of time."""
        if self.schedule.relative:
            return runner.max_iters
        if not self.schedule.by_epoch:
            return 1
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            return len(loader)
        # An infinite sampler's length is the data set's, independent of the number of processes.
        return len(loader.dataset) / (batch_size(loader) * get_world_size())

    def fit(self, model: RdimKDDistiller, dataloader: DataLoader) -> None:
        """Fit the projections of a student on training images; preserves the random states."""
        num_images = self.calibration_images or default_calibration_images(len(dataloader.dataset))
        print_log(f'RdimKD: fitting the projections on {num_images} training images', 'current')
        with preserved_random_state():
            fit_projections(model, calibration_batches(dataloader, num_images, self.seed))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the distillation state to a checkpoint, and the facts of the training to its 'meta'.

        Weights that a loss of this iteration has spoilt are not saved, independent of the order of
        the hooks in a config.
        """
        stop_if_broken(self._to_stop_at, self._describe_checkpoints)
        distill = distilled_student(runner.model).distill
        checkpoint['distill'] = weights_to_cpu(distill.state_dict())
        checkpoint['meta'][KEY] = self._facts
        factor = self.factor_at(runner, checkpoint['meta']['iter'])
        checkpoint['meta']['distillation_factor'] = factor

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the distillation state when training resumes with the same teacher and losses."""
        if not runner._resume:  # testing, or a new training from given weights
            return
        self._resumed = True
        share_metainfo(runner.train_dataloader.dataset)  # mmengine compares it with a checkpoint's
        if self._follows_epochs(runner):
            self._shift = _shift_after(checkpoint, len(runner.train_dataloader))
        if 'distill' not in checkpoint:
            runner.logger.warning(
                'RdimKD: the checkpoint holds no distillation state; the projections are fitted '
                'again and the adapters start from their initial weights.',
            )
            return
        distill = distilled_student(runner.model).distill
        check_same_distillation(checkpoint.get('meta', {}), training_facts(distill))
        distill.restore(checkpoint['distill'], 'DistillHook: the checkpoint')


def _shift_after(checkpoint: dict, length: int) -> int:
    """Return by how many iterations a checkpoint of a training with epochs of a length lags."""
    meta, state = checkpoint['meta'], next(iter(checkpoint.get('resume', ())), {})
    done = batches_done(state.get('batches', 0), state.get('epoch_length', length), length)
    return meta['epoch'] * length + done - meta['iter']


def _update_averaged_models(runner: Runner, distill: Distillation) -> None:
    # EMAHook copies the model in before_run, before the bases are fitted.
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            hook.ema_model.module.distill.load_state_dict(distill.state_dict())
