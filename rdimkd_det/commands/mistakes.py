"""Reports in one line what fails when first done in a run, most often because of the config."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..errors import ConfigError, TrainingStoppedError
from ..names import explain
from .unreadable import unreadable_files_named


class FirstTime(Hook):
    """Tells whether a failed operation was the first of its kind in this run.

    The first iteration, the first validation, and the first periodic action of each hook, such as
    a log or a checkpoint, use everything that the config says about them.
    """

    priority = 'LOWEST'  # a stage is done when all hooks have done their part

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()  # by stage of mmengine's hooks
        self._switched = 0

    def _count(self, stage: str, runner: Runner, *args, **kwargs) -> None:
        self.done[stage] += 1
        switched = sum(getattr(hook, '_has_switched', False) for hook in runner.hooks)
        if switched > self._switched:  # mmdet's hooks that change the data pipeline
            self._switched = switched
            self.done['before_train_iter'] = 0

    def covers(self, error: Exception) -> bool:
        """Return whether an exception comes from something that was done for the first time."""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == 'call_hook':  # the Runner's, or the FlexibleRunner's
                return self._hook_is_new(frame.f_locals['hook'], frame.f_locals['fn_name'])
        return self._loop_is_new()

    def _hook_is_new(self, hook: Hook, stage: str) -> bool:
        """Return whether a hook has not yet done its work in a stage."""
        if isinstance(hook, CheckpointHook) and not self.done['before_save_checkpoint']:
            return True
        interval = getattr(hook, 'interval', 1)
        if stage.endswith('val_epoch') or not isinstance(interval, int):
            interval = 1
        waiting = not getattr(hook, '_has_switched', True)
        return waiting or self.done[stage] < max(1, interval)

    def _loop_is_new(self) -> bool:
        """Return whether a loop is in its first validation, iteration, or end of an epoch."""
        done = self.done
        if done['before_val_epoch'] > done['after_val_epoch']:
            return not done['after_val_epoch']
        between_epochs = done['before_train_epoch'] == done['after_train_epoch']
        first_end = between_epochs and done['after_train_epoch'] == 1
        return done['before_train_iter'] <= 1 or first_end


for _stage in Hook.stages:
    setattr(FirstTime, _stage, partialmethod(FirstTime._count, _stage))


@contextmanager
def first_errors_explained(runner: Runner) -> Iterator[None]:
    """Turn an exception in anything done for the first time into a ``ConfigError``.

    Args:
        runner (Runner): The runner that trains or tests in the block. The traceback is written to
            a file beside its log.

    Raises:
        ConfigError: Replaces such an exception, except ``FloatingPointError`` and
            ``TrainingStoppedError``.
    """
    first_time = FirstTime()
    runner.register_hook(first_time)
    try:
        with unreadable_files_named(runner.cfg):
            yield
    except (ConfigError, FloatingPointError, TrainingStoppedError, BrokenPipeError):
        raise
    except Exception as error:
        if not first_time.covers(error):
            raise
        file = Path(runner.log_dir, f'error_rank{get_rank()}.txt')
        file.write_text(traceback.format_exc())
        raise ConfigError(f'{as_config_error(error)} (traceback: {file})') from error


@contextmanager
def errors_explained(cfg: Config) -> Iterator[None]:
    """Turn an exception in the block into a ``ConfigError``; for tools that write no log.

    Args:
        cfg (Config): The config that the block uses.

    Raises:
        ConfigError: Replaces any exception except ``FloatingPointError`` and
            ``TrainingStoppedError``.
    """
    try:
        with unreadable_files_named(cfg):
            yield
    except (FloatingPointError, TrainingStoppedError, BrokenPipeError):
        raise
    except Exception as error:
        raise as_config_error(error) from error


def as_config_error(error: Exception) -> ConfigError:
    """Turn an exception into a ``ConfigError``, unless it is one already."""
    if isinstance(error, ConfigError):
        return error
    return ConfigError(f'the config cannot be run: {explain(error)}')
