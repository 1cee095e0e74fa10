"""Progress bars for long work, on a terminal only; and durations in words."""

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


def watched(
    items: Iterable, description: str, total: int | None = None, console: Console | None = None
) -> Iterable:
    """The items, with a bar and the time left on a terminal; nothing is shown elsewhere.

    Args:
        items (Iterable): What takes long.
        description (str): What is being done.
        total (int, optional): Their number. Defaults to their length.
        console (Console, optional): Where to show it. Defaults to stderr.
    """
    console = console or Console(stderr=True)
    options = dict(console=console, transient=True, disable=not console.is_terminal)
    return track(items, description, total=total, **options)


@contextmanager
def counting_bar(
    title: str, total: int, console: Console | None = None, shown: bool = True
) -> Iterator[Callable[..., None]]:
    """A bar with numbers and the time left on a terminal, for work that counts by itself.

    Args:
        title (str): What is being done.
        total (int): How many there are.
        console (Console, optional): Where to show it. Defaults to stderr.
        shown (bool): Whether to show it, e.g. in the first process only. Defaults to True.

    Yields:
        Callable: Takes how many more are done, 1 unless told.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disabled = not (shown and console.is_terminal)
    with Progress(*columns, console=console, disable=disabled) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count=1: progress.advance(task, count)


def format_time(seconds: float) -> str:
    """A duration for people, e.g. '40 s', '12 min' or '1 h 05 min'."""
    if seconds < 90:
        return f'{max(seconds, 0):.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
