"""Explains in one line that a training run ended because a disk is full or fails."""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ..errors import TrainingStoppedError
from .saving import describe_last_good

FAILURES = {
    errno.ENOSPC: 'the disk is full',
    errno.EDQUOT: 'the disk quota is used up',
    errno.EIO: 'the disk fails',
}


@contextmanager
def disk_failures_explained(work_dir: str) -> Iterator[None]:
    """Explain the error of a full or failing disk, and name the last good checkpoint.

    Args:
        work_dir (str): Work directory of the training run.

    Raises:
        TrainingStoppedError: Replaces an ``OSError`` with such a cause.
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


def raise_when_log_fails(logger: logging.Logger) -> None:
    """Make a logger raise the error if its log file is on a full or failing disk.

    By default, Python's logging prints a traceback for each lost line and continues.

    Args:
        logger (Logger): The logger of a runner.
    """
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_raise_disk_failure, handler.handleError)


def _raise_disk_failure(otherwise: Callable, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError) and error.errno in FAILURES:
        raise error
    otherwise(record)
