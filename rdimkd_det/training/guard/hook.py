"""``TrainingGuard``: makes a training run resumable after any interruption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    barrier,
    get_comm_device,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ...distiller import RdimKDDistiller
from ...errors import TrainingInterruptedError
from ...files.atomic import remove_leftovers, write_text
from .changes import warn_of_changes
from .resume_point import ResumePoint
from .saving import INTERRUPTED, LAST_CHECKPOINT, LateRemoval, write_checkpoints_whole
from .signals import StopRequest

# Iterations between two exchanges of received signals among several processes; an exchange waits
# for the slowest process.
AGREE_EVERY = 10


def guard(runner: Runner) -> None:
    """Add a :class:`TrainingGuard` to a runner that has none."""
    if not any(isinstance(hook, TrainingGuard) for hook in runner.hooks):
        runner.register_hook(TrainingGuard())


class TrainingGuard(Hook):
    """Makes a training run resumable at any iteration, bit for bit, whatever ends it.

    - Checkpoints are written whole or not at all; outdated ones are removed only afterwards.
    - ``checkpoint['resume']`` holds the random states of all processes and data loader workers, and
      the position in the data. A resumed run continues from there, also in the middle of an epoch.
    - SIGTERM and Ctrl-C write a checkpoint before they end the run.

    ``DistillHook`` and the command lines add this hook. It runs after all other hooks, so that
    they have done their part of an iteration.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._stop = StopRequest()
        self._point: ResumePoint | None = None
        self._resumed: list[dict] = []  # like `_states`, from the checkpoint
        self._states: list[dict] = []  # one per rank
        self._saved_at: int | None = None  # iteration of `_states`

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the resume states from a checkpoint, if the run resumes from it."""
        # mmengine (0.10.7, OneDL 0.10.12) would run this text as Python when it resumes.
        checkpoint.get('meta', {}).pop('config', None)
        if not runner._resume:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if 'distill' in checkpoint and not isinstance(model, RdimKDDistiller):
            runner.logger.warning(
                'RdimKD: the checkpoint is of a distilled training; it continues '
                'without distillation'
            )
        warn_of_changes(runner, checkpoint)
        self._resumed = checkpoint.get('resume', [])
        if not self._has_same_processes:
            runner.logger.warning(
                'RdimKD: the checkpoint holds the random states of %d processes, not of %d: this '
                'training is not bit for bit the uninterrupted one',
                len(self._resumed),
                get_world_size(),
            )

    @property
    def _has_same_processes(self) -> bool:
        return len(self._resumed) == get_world_size()

    def before_train(self, runner: Runner) -> None:
        """Set up saving and signals, and restore the position of a resumed run."""
        write_checkpoints_whole()
        if is_main_process():
            remove_leftovers(Path(runner.work_dir), '*.pth')
        self._point = ResumePoint(runner)
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook):
                save = hook._save_checkpoint_with_step
                hook._save_checkpoint_with_step = partial(self._save, hook, save)
                hook.file_backend = LateRemoval(hook)
        if self._resumed:
            same = self._has_same_processes
            self._point.restore(self._resumed[get_rank() if same else 0], same)
        if self._point.nothing_left:
            runner.logger.warning(
                'RdimKD: the checkpoint stands at iteration %d of %d: nothing is left to train; '
                'to continue, raise train_cfg.max_epochs or max_iters',
                runner.iter,
                runner.max_iters,
            )
        self._stop.listen()

    def _save(
        self, hook: CheckpointHook, save: Callable, runner: Runner, step: int, meta: dict
    ) -> None:
        """Replaces ``CheckpointHook``'s own method, which all ranks call."""
        if (meta['epoch'], meta['iter']) == (runner.epoch, runner.iter):
            # `save_best` saves after a validation, before this hook's `after_val_epoch` is called.
            self._point.end_validation()
        self._gather(meta)
        save(runner, step, meta=meta)
        hook.file_backend.flush()
        if is_main_process():
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)

    def _gather(self, meta: dict) -> None:
        # The Runner saves on rank 0 only, which does not know the states of the other ranks.
        self._states = all_gather_object(self._point.state(meta['epoch']))
        self._saved_at = meta['iter']

    def before_train_epoch(self, runner: Runner) -> None:
        """Record the random state at the start of the epoch, or restore it in a resumed epoch."""
        self._point.start_epoch()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Take the worker's random state out of the batch."""
        self._point.start_iteration(batch_idx, data_batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the resume states, one per process, in a checkpoint that is saved."""
        if self._saved_at == checkpoint['meta']['iter']:
            checkpoint['resume'] = self._states

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """End the training if a signal asked for it."""
        if (get_world_size() == 1 or self.every_n_train_iters(runner, AGREE_EVERY)) and self._asked:
            self._save_and_stop(runner, {'epoch': runner.epoch, 'iter': runner.iter + 1})

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """End the training if a signal asked for it and the last checkpoint is up to date."""
        saved = self._saved_at == runner.iter
        if saved and get_world_size() == 1 and self._asked:
            self._stop_training('the last checkpoint is of this iteration')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remove outdated best checkpoints, and end the training if a signal asked for it."""
        for hook in runner.hooks:
            backend = getattr(hook, 'file_backend', None)
            if isinstance(backend, LateRemoval):
                backend.flush()
        if self._point and self._stop.listening:
            self._point.end_validation()
            if self._asked:
                self._save_and_stop(runner, {'epoch': runner.epoch, 'iter': runner.iter})

    def after_train(self, runner: Runner) -> None:
        """Restore the earlier signal handlers."""
        self._stop.stop_listening()

    @property
    def _asked(self) -> bool:
        """Whether any process has received a signal."""
        asked = torch.tensor(float(self._stop.signal is not None), device=get_comm_device())
        all_reduce(asked, 'max')
        return bool(asked)

    def _save_and_stop(self, runner: Runner, meta: dict) -> None:
        self._gather(meta)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        path = Path(runner.work_dir, INTERRUPTED)
        if is_main_process():
            write_text(Path(runner.work_dir, LAST_CHECKPOINT), str(path))
        # srun and torchrun kill all processes once one has ended, while rank 0 may still write.
        barrier()
        self._stop_training(f'written to {path}')

    def _stop_training(self, saved: str) -> None:
        self._stop.stop_listening()
        raise TrainingInterruptedError(
            f'stopped at iteration {self._saved_at}, {saved}; continue with --resume.',
            status=128 + (self._stop.signal or 0),
        )
