"""Explains why a data loader lost a worker process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TrainingStoppedError, last_line
from .saving import describe_last_good


@contextmanager
def killed_workers_explained(work_dir: str) -> Iterator[None]:
    """Explain why a data loader lost a worker process, and name the last good checkpoint.

    Args:
        work_dir (str): Work directory of the training run.

    Raises:
        TrainingStoppedError: Replaces PyTorch's exception.
    """
    try:
        yield
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error) or isinstance(error, TrainingStoppedError):
            raise
        raise TrainingStoppedError(
            f'{last_line(error).rstrip(".")}: it was killed or crashed, usually because '
            f'memory ran out; lower train_dataloader.num_workers or batch_size. '
            f'{describe_last_good(work_dir)} Continue with --resume.'
        ) from error
