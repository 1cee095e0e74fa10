"""What fails before the first iteration is done, most often the config, is told in one line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .errors import ConfigError
from .names import hint_for


class FirstIteration(Hook):
    """Knows whether an iteration of training, validation or test has been done."""

    priority = 'VERY_HIGH'  # before the hooks whose failure is no mistake in the config
    done = False

    def after_train_iter(self, *args, **kwargs) -> None:
        """The model, data and optimizer of the config have worked."""
        self.done = True

    after_val_iter = after_test_iter = after_train_iter


@contextmanager
def told_in_one_line(runner: Runner) -> Iterator[None]:
    """Make an exception before the end of the first iteration a ``ConfigError``.

    Args:
        runner (Runner): The runner that trains or tests in the block. The traceback goes into a
            file beside its log.

    Raises:
        ConfigError: In place of any other exception.
    """
    first = FirstIteration()
    runner.register_hook(first)
    try:
        yield
    except (ConfigError, FloatingPointError):
        raise
    except Exception as error:
        if first.done:
            raise
        file = Path(runner.log_dir, f'error_rank{get_rank()}.txt')
        file.write_text(traceback.format_exc())
        raise ConfigError(f'{as_config_error(error)} (Where: {file})') from error


def as_config_error(error: Exception) -> ConfigError:
    """An exception of the host as one line, with what a misspelled name probably meant."""
    if isinstance(error, ConfigError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A data loader's worker sends its traceback as the text of an exception.
    text = (lines[-1] if lines[0].startswith('Caught ') else lines[0]) if lines else ''
    return ConfigError(f'the config cannot be run: {type(error).__name__}: {text}{hint_for(error)}')
