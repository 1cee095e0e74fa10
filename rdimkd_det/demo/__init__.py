"""The demo: a teacher, a plain and a RdimKD student on digits, and a report on the three.

``plan`` says what is to be trained, ``stages`` goes through all, ``results``, ``detections``,
``figures`` and ``report`` show it; ``rdimkd_det.trainings`` does the training,
``rdimkd_det.reports`` has what reports are made of.
"""

from .plan import DemoOptions
from .stages import run_demo

__all__ = ['DemoOptions', 'run_demo']
