"""Trainings as child processes, shared by the demo and the experiments.

``run`` describes a training, ``training`` runs one in a child process, and ``pool`` runs several at
once. ``history`` reads what mmengine logged, ``progress`` shows it, ``state`` has files and locks
that survive a kill, and ``digits`` makes the data set.
"""

from .digits import data_paths, prepare_digits
from .pool import seconds_left, stop_on_signals, train_all
from .run import ROOT, Run, guess_pace, path_option
from .training import TrainingFailedError, check_settings, is_done

__all__ = [
    'ROOT',
    'Run',
    'TrainingFailedError',
    'check_settings',
    'data_paths',
    'guess_pace',
    'is_done',
    'path_option',
    'prepare_digits',
    'seconds_left',
    'stop_on_signals',
    'train_all',
]
