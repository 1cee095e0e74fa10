"""One look at the data of a run before it starts, at annotations, images and evaluator."""

from .check import look_at
from .findings import DataReport, Finding

__all__ = ['DataReport', 'Finding', 'look_at']
