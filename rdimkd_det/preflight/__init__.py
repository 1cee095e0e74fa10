"""Preflight: what a distilled training will do, told before it starts."""

from .report import Report
from .run import preflight, static_report

__all__ = ['Report', 'preflight', 'static_report']
