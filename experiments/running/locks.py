"""Locks of directories, which end with their holders."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from typing import IO


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
