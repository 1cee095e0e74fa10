"""Progress bars, shown on a terminal only, and durations in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)


def with_progress(
    items: Iterable, description: str, total: int | None = None, console: Console | None = None
) -> Iterable:
    """Iterate over items, with a progress bar and the remaining time on a terminal (stderr)."""
    console = console or Console(stderr=True)
    options = dict(console=console, transient=True, disable=not console.is_terminal)
    return track(items, description, total=total, **options)


@contextmanager
def counting_bar(
    title: str, total: int, console: Console | None = None, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """Show a bar with counts and the remaining time on a terminal (stderr), advanced by the caller.

    Yields a function that advances the bar by a number of items, 1 by default. ``shown`` may be
    false, e.g. on all ranks but 0.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disabled = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disabled) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count=1: progress.advance(task, count)


def format_time(seconds: float) -> str:
    """Return a duration in words, e.g. '40 s', '12 min' or '1 h 05 min'."""
    if seconds < 90:
        return f'{max(seconds, 0):.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
