"""The licence of a pretrained module, if the directory of its weights has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .module_source import directory_of


def find_licence(directory: Path | None) -> Path | None:
    """Return a directory's licence file; None if it has none."""
    files = [] if directory is None else [path for path in directory.iterdir() if path.is_file()]
    named = ('licen', 'copying')
    return min((it for it in files if it.name.lower().startswith(named)), default=None)


def licence_text(module: Mapping) -> str | None:
    """Return the licence of a module in a config, with the name of its file; None without one."""
    path = find_licence(directory_of(module))
    return None if path is None else f'{path.name}:\n{path.read_text("utf-8", errors="replace")}'
