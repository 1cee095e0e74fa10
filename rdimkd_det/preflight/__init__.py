"""Preflight: a report on a distilled training run before it starts."""

from .report import Report
from .run import data_report, preflight, static_report

__all__ = ['Report', 'data_report', 'preflight', 'static_report']
