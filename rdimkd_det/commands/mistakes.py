"""What fails the first time it is done, most often for the config, is told in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..errors import ConfigError, TrainingStoppedError
from ..names import explain


class FirstTime(Hook):
    """Knows whether what is being done, training, validation or test, has been done before.

    A training's first iteration and the first whole validation, its metrics included, need all
    that the config says of them.
    """

    priority = 'VERY_HIGH'  # before the hooks whose failure is no mistake in the config

    def __init__(self) -> None:
        self.trained = self.evaluated = self.evaluating = False

    @property
    def now(self) -> bool:
        """bool: Whether it is done for the first time."""
        return not (self.evaluated if self.evaluating else self.trained)

    def after_train_iter(self, *args, **kwargs) -> None:
        """The model, data and optimizer of the config have worked."""
        self.trained = True

    def before_val_epoch(self, runner: Runner) -> None:
        """From here on it is validation's data and evaluator that fail."""
        self.evaluating = True

    def after_val_epoch(self, *args, **kwargs) -> None:
        """They have worked."""
        self.evaluated, self.evaluating = True, False


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
        if not first_time.now:
            raise
        file = Path(runner.log_dir, f'error_rank{get_rank()}.txt')
        file.write_text(traceback.format_exc())
        raise ConfigError(f'{as_config_error(error)} (Where: {file})') from error


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
