"""How long a training took, as it logged of each iteration."""

from __future__ import annotations

from rdimkd_det.files.scalars import History


def logged_seconds(history: History, iterations: int) -> float:
    """Return the time of a training of so many iterations, as logged per iteration.

    Validation and repeated iterations are not counted.
    """
    total, previous, pace = 0.0, 0, 0.0
    for step, pace in zip(*history.series('time')):
        total += pace * (step - previous)
        previous = step
    return total + pace * (iterations - previous)  # the last iterations may not be logged


def logged_pace(history: History) -> float | None:
    """Return the mean logged seconds per iteration, without validation; None if none is logged."""
    iterations = history.iterations
    return logged_seconds(history, iterations) / iterations if iterations else None
