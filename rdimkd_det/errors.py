"""Exceptions that users see: mistakes that they can fix, and reasons why a training ended."""

from __future__ import annotations


class ConfigError(ValueError):
    """A config, file or option that the user gave cannot be used.

    Its message is one line: who complains, what was expected, what was given, what to do. The
    command lines print that line and exit with status 2.
    """


class TrainingStoppedError(RuntimeError):
    """A training cannot go on, for a reason outside of its config, e.g. a full disk.

    Its message is one line, with what to do. The command lines exit with status 1.
    """


class TrainingInterruptedError(KeyboardInterrupt):
    """A signal ended a training, after it had written a checkpoint.

    Args:
        message (str): One line that names the checkpoint.
        status (int): Exit status of the command line: 128 and the signal's number.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def last_line(error: Exception) -> str:
    """The last line of an exception's text; one from a data loader's worker is a traceback."""
    name = f'{TrainingStoppedError.__module__}.{TrainingStoppedError.__name__}: '
    return str(error).strip().split('\n')[-1].removeprefix(name)


def named_file(error: OSError) -> str | None:
    """Which file the operating system refused and why, as one line; None if it does not say."""
    if error.filename is None or error.strerror is None:
        return None
    return f'{error.filename}: {error.strerror}.'
