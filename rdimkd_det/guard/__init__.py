"""Guards a training: nothing is lost when it is interrupted, and why it ended is said."""

from .hook import TrainingGuard, guard
from .nonfinite import StepSkipper, deferred_checks
from .saving import latest_checkpoint
from .workers import killed_workers_explained

__all__ = [
    'StepSkipper',
    'TrainingGuard',
    'deferred_checks',
    'guard',
    'killed_workers_explained',
    'latest_checkpoint',
]
