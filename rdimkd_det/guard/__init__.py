"""Guards a training: nothing is lost when it is interrupted, and why it ended is said."""

from .hook import TrainingGuard, guard
from .nonfinite import StepSkipper
from .saving import last_good, latest_checkpoint

__all__ = ['StepSkipper', 'TrainingGuard', 'guard', 'last_good', 'latest_checkpoint']
