"""Exceptions for users: errors they can fix, and reasons why a training ended."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A config, file or option that the user gave cannot be used.

    The message is one line: which component raises it, what it expected, what it got and what to
    do. The command lines print that line and exit with status 2.
    """


class TrainingStoppedError(RuntimeError):
    """A training cannot continue for a reason outside its config, e.g. a full disk.

    The message is one line that says what to do. The command lines exit with status 1.
    """


class TrainingInterruptedError(KeyboardInterrupt):
    """A signal ended a training, after it had written a checkpoint.

    Args:
        message (str): One line that names the checkpoint.
        status (int): Exit status of the command line: 128 plus the signal's number.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def last_line(error: Exception) -> str:
    """Return the last line of an exception's text, which is a traceback if a worker sent it."""
    name = f'{TrainingStoppedError.__module__}.{TrainingStoppedError.__name__}: '
    return str(error).strip().split('\n')[-1].removeprefix(name)


def named_file(error: OSError) -> str | None:
    """Return the file and reason of an OSError as one line, or None if it does not hold them."""
    if error.filename is None or error.strerror is None:
        return None
    return f'{error.filename}: {error.strerror}.'


def counted_from(path: str) -> str:
    """Say from where a relative path counts, as the end of a message; '' for any other path."""
    if Path(path).is_absolute() or '://' in path:
        return ''
    return f' Relative paths count from {Path.cwd()}.'
