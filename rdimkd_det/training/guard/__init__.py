"""Protects a training run: an interruption loses nothing, and a failure is explained."""

from .failures import failures_explained, raise_when_log_fails
from .hook import TrainingGuard, guard
from .nonfinite import StepSkipper, defer_checks, describe_last_finite
from .resume_point import batches_done
from .saving import latest_checkpoint, latest_or_none, noted_checkpoint, seed_of

__all__ = [
    'StepSkipper',
    'TrainingGuard',
    'batches_done',
    'defer_checks',
    'describe_last_finite',
    'failures_explained',
    'guard',
    'latest_checkpoint',
    'latest_or_none',
    'noted_checkpoint',
    'raise_when_log_fails',
    'seed_of',
]
