"""A progress bar for what takes long."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track


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
