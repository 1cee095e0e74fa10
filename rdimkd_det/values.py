"""Checks of the values of options."""

from __future__ import annotations

import math


def is_whole_number(value: object, least: int) -> bool:
    """Check whether an option is an int (not a bool) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_amount(value: object) -> bool:
    """Check whether an option is a finite number (not a bool) of 0 or more."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < math.inf
