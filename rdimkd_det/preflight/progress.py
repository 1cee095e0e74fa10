"""A progress bar for what takes long."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track


def watched(items: Iterable, description: str) -> Iterable:
    """The items, with a bar on the terminal, if there is one, that goes when they have gone."""
    console = Console(stderr=True)  # stdout is the report's
    return track(
        items, description, console=console, transient=True, disable=not console.is_terminal
    )
