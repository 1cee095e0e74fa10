"""Trainings as child processes: what the demo and the experiments share.

``run`` says what is to be trained, ``training`` trains it in a child process, ``pool`` several at
once. ``history`` reads what mmengine logged, ``progress`` shows it, ``state`` keeps what survives
a kill, ``digits`` makes the data.
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
