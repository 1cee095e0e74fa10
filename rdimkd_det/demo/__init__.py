"""The demo: a teacher, a plain and a RdimKD student on digits, and a report on the three.

``plan`` says what is to be trained, ``training`` runs one training as a child process, ``stages``
goes through all, ``history`` reads what mmengine logged, ``results``, ``detections``, ``figures``,
``page`` and ``report`` show it.
"""

from .plan import DemoOptions
from .stages import run_demo
from .training import TrainingFailedError

__all__ = ['DemoOptions', 'TrainingFailedError', 'run_demo']
