"""Files that are whole or absent, and the hash that tells which."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import ConfigError


@contextmanager
def written_whole(path: Path, mode: str = 'wb') -> Iterator[IO]:
    """Write a file so that it is there completely or not at all, also after a power cut.

    Args:
        path (Path): The file; its directory must exist.
        mode (str): 'wb' or 'w' (UTF-8). Defaults to 'wb'.

    Yields:
        IO: An open file, which becomes ``path`` when the block ends without an error.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with temporary.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the one that the user has asked for
        raise
    finally:
        with suppress(OSError):  # it is there only if something went wrong
            temporary.unlink()


@contextmanager
def told_if_unwritable(path: Path, option: str) -> Iterator[None]:
    """Make the folder of a file that the user named, and tell in one line if it takes no file.

    Args:
        path (Path): The file.
        option (str): Of the command line, e.g. '--out'.

    Raises:
        ConfigError: In place of an ``OSError`` in the block or of its folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f'{option} {path} cannot be written ({error}); make room, or give another path.'
        ) from error


def try_writing(directory: Path) -> None:
    """Try to write into a directory, or into what would hold it, and leave nothing there.

    Only trying tells: root may write anywhere, and still not into /proc.

    Args:
        directory (Path): It need not exist; then the nearest of its parents that does is tried.

    Raises:
        OSError: It takes no file.
    """
    path = directory.absolute()
    existing = next(it for it in (path, *path.parents) if os.path.lexists(it))
    with tempfile.TemporaryFile(dir=existing):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is there completely or not at all.

    Args:
        path (Path): The file; its directory must exist.
        text (str): Its content.
    """
    with written_whole(path, 'w') as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file so that it is there completely or not at all.

    Args:
        path (Path): The file; its directory must exist.
        content (bytes): Its content.
    """
    with written_whole(path) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece: a checkpoint may be large.

    Args:
        path (Path): The file.
    """
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    # Without it the new name itself may be lost. Some file systems cannot do it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
