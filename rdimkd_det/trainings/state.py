"""State that survives a kill: JSON written atomically, and locks that end with their holders."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import IO

from ..files.whole import write_text


def write_json(path: Path, content: dict) -> None:
    """Write a dict as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def read_json(path: Path) -> dict:
    """Read a dict from JSON; an empty dict if the file is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def lock_directory(directory: Path, patience: float = 0.0) -> IO | None:
    """Lock a directory for this process and the processes that inherit the lock.

    The operating system releases the lock when the last process that holds it has ended, even if it
    was killed.

    Args:
        directory (Path): The directory; made if missing.
        patience (float): Seconds to wait for the current holder to end. Defaults to 0.

    Returns:
        IO | None: The open lock file, to be closed or passed on; None if another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / '.lock').open('a')
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            if time.monotonic() >= deadline:
                lock.close()
                return None
        time.sleep(0.2)
