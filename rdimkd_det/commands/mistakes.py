"""Errors in a first iteration, validation or checkpoint, reported in one line as mistakes."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from ..errors import ConfigError, TrainingStoppedError
from ..names import explain


class FirstTime(Hook):
    """Knows whether what failed has never been done before in this run.

    The first iteration, the first validation, and the first time that each hook has done what it
    does every so often, such as a log or a checkpoint, need all that the config says of them.
    """

    priority = 'LOWEST'  # a stage is done when all hooks have done their part

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()  # of mmengine's stages
        self._switched = 0

    def _count(self, stage: str, runner: Runner, *args, **kwargs) -> None:
        self.done[stage] += 1
        switched = sum(getattr(hook, '_has_switched', False) for hook in runner.hooks)
        if switched > self._switched:  # mmdet's hooks that change the data pipeline
            self._switched = switched
            self.done['before_train_iter'] = 0

    def covers(self, error: Exception) -> bool:
        """Whether an exception came out of what was done for the first time."""
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == 'call_hook':  # the Runner's, or the FlexibleRunner's
                return self._hook_is_new(frame.f_locals['hook'], frame.f_locals['fn_name'])
        return self._loop_is_new()

    def _hook_is_new(self, hook: Hook, stage: str) -> bool:
        """Whether a hook has not yet done its work of a stage."""
        if isinstance(hook, CheckpointHook) and not self.done['before_save_checkpoint']:
            return True
        interval = getattr(hook, 'interval', 1)
        if stage.endswith('val_epoch') or not isinstance(interval, int):
            interval = 1
        waiting = not getattr(hook, '_has_switched', True)
        return waiting or self.done[stage] < max(1, interval)

    def _loop_is_new(self) -> bool:
        """Whether a loop is in its first validation, iteration, or end of an epoch."""
        done = self.done
        if done['before_val_epoch'] > done['after_val_epoch']:
            return not done['after_val_epoch']
        between_epochs = done['before_train_epoch'] == done['after_train_epoch']
        first_end = between_epochs and done['after_train_epoch'] == 1
        return done['before_train_iter'] <= 1 or first_end


for _stage in Hook.stages:
    setattr(FirstTime, _stage, partialmethod(FirstTime._count, _stage))


@contextmanager
def told_in_one_line(runner: Runner) -> Iterator[None]:
    """Make an exception in what is done for the first time a ``ConfigError``.

    Args:
        runner (Runner): The runner that trains or tests in the block. The traceback goes into a
            file beside its log.

    Raises:
        ConfigError: In place of any other exception.
    """
    first_time = FirstTime()
    runner.register_hook(first_time)
    try:
        yield
    except (ConfigError, FloatingPointError, TrainingStoppedError):
        raise
    except Exception as error:
        if not first_time.covers(error):
            raise
        file = Path(runner.log_dir, f'error_rank{get_rank()}.txt')
        file.write_text(traceback.format_exc())
        raise ConfigError(f'{as_config_error(error)} (traceback: {file})') from error


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Make an exception of the host in the block a ``ConfigError``; for what writes no log.

    Raises:
        ConfigError: In place of any other exception.
    """
    try:
        yield
    except (FloatingPointError, TrainingStoppedError):
        raise
    except Exception as error:
        raise as_config_error(error) from error


def as_config_error(error: Exception) -> ConfigError:
    """An exception of the host as a user's mistake."""
    if isinstance(error, ConfigError):
        return error
    return ConfigError(f'the config cannot be run: {explain(error)}')
