"""Explains in one line that a training run ended because of a disk, or a lost worker process."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ...errors import TrainingStoppedError, last_line
from .saving import describe_last_good

FAILURES = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EIO: 'the disk fails',
}


@contextmanager
def failures_explained(work_dir: str) -> Iterator[None]:
    """Turn the error of a disk or of a lost worker process into a ``TrainingStoppedError``.

    It says what to do, and names the last good checkpoint.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FAILURES:
            raise
        file = f': {error.filename}' if error.filename else ''
        raise TrainingStoppedError(
            f'{FAILURES[error.errno]} ({error.strerror}{file}), work directory {work_dir}. '
            f'{describe_last_good(work_dir)} Fix this, then continue with --resume.'
        ) from error
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error) or isinstance(error, TrainingStoppedError):
            raise
        raise TrainingStoppedError(
            f'{last_line(error).rstrip(".")}: it was killed or crashed, usually because '
            f'memory ran out; lower train_dataloader.num_workers or batch_size. '
            f'{describe_last_good(work_dir)} Continue with --resume.'
        ) from error


def raise_when_log_fails(logger: logging.Logger) -> None:
    """Make a logger raise the error if its log file is on a full or failing disk.

    By default, Python's logging prints a traceback for each lost line and continues.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_raise_disk_failure, handler.handleError)


def _raise_disk_failure(otherwise: Callable, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError) and error.errno in FAILURES:
        raise error
    otherwise(record)
