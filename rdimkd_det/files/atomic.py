"""Writes files whole or not at all, and hashes them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..errors import ConfigError


@contextmanager
def written_whole(path: Path, mode: str = 'wb') -> Iterator[IO]:
    """Write a file completely or not at all, even if the power is cut.

    Yields a file, opened with mode 'wb' or 'w' (UTF-8), which becomes ``path`` when the block ends
    without an error. The directory must exist.
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
        if error.errno and error.filename in (None, str(temporary)):  # None: of a full disk
            error.filename = str(path)  # the name that the user gave
        raise
    finally:
        with suppress(OSError):  # it exists only after an error
            temporary.unlink()


def remove_leftovers(directory: Path, pattern: str = '*') -> None:
    """Remove what killed processes left of the files that they were writing."""
    for path in directory.glob(f'.{pattern}.*.part'):
        with suppress(OSError):
            path.unlink()


@contextmanager
def write_errors_explained(path: Path, option: str) -> Iterator[None]:
    """Create the folder of an output file, and turn an ``OSError`` into one line.

    ``option`` is what names the file on the command line, e.g. '--out'.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ConfigError(
            f'{option} {path} cannot be written ({error}); make room, or give another path.'
        ) from error


def try_writing(directory: Path) -> None:
    """Create a temporary file in a directory, or in its nearest parent that exists.

    Permissions do not tell: root may write anywhere, but not into /proc. An ``OSError`` is passed
    on.
    """
    path = directory.absolute()
    existing = next(it for it in (path, *path.parents) if os.path.lexists(it))
    with tempfile.TemporaryFile(dir=existing):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all; its directory must exist."""
    with written_whole(path, 'w') as file:
        file.write(text)


def write_json(path: Path, content: dict) -> None:
    """Write a dict as JSON, completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + '\n')


def read_json(path: Path) -> dict:
    """Read a dict from JSON; an empty dict if the file is missing or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file completely or not at all; its directory must exist."""
    with written_whole(path) as file:
        file.write(content)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in chunks since it may be large."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(directory: Path) -> None:
    # Otherwise a power cut may undo the renaming. Some file systems do not support it.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
