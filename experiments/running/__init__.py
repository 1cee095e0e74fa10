"""Trainings as child processes, which resume after any interruption.

``run`` describes a training, ``training`` runs one in a child process, and ``pool`` runs several at
once. ``progress`` shows what mmengine logged, and ``locks`` keeps two commands apart.
"""

from .pool import seconds_left, stop_on_signals, train_all
from .run import ROOT, Run, path_option
from .training import TrainingFailedError, is_done

__all__ = [
    'ROOT',
    'Run',
    'TrainingFailedError',
    'is_done',
    'path_option',
    'seconds_left',
    'stop_on_signals',
    'train_all',
]
