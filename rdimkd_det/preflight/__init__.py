"""Preflight: checks of a distilled training before it starts."""

from .report import Report
from .run import data_report, preflight, static_report

__all__ = ['Report', 'data_report', 'preflight', 'static_report']
