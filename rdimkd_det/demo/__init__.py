"""The demo: a teacher, a plain and a RdimKD student on digits, and a report on the three.

``plan`` lists the trainings, ``stages`` runs everything, and ``results``, ``detections``,
``figures`` and ``report`` show the outcome. ``rdimkd_det.trainings`` does the training;
``rdimkd_det.reports`` has the parts that reports are built from.
"""

from .plan import DemoOptions
from .stages import run_demo

__all__ = ['DemoOptions', 'run_demo']
