"""Shards of a teacher cache: safetensors files with one tensor per image.

The tensor is named by the image's key, and has the values of its maps, level after level, in half
precision. The one entry of the metadata, 'index', is JSON: 'bases', the SHA-256 of the bases that
the maps were projected on; and 'images', for each key its checksum, the (H, W) of the image, and
the shapes of its maps.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

from ...errors import ConfigError
from ...files.atomic import write_bytes


class Entry(NamedTuple):
    """The location of one image's maps."""

    shard: int
    offset: int  # of the first byte in the shard's file
    crc32: int  # of key, shapes and values
    image_shape: tuple[int, int]  # without padding
    map_shapes: tuple[tuple[int, int, int], ...]  # (d, h, w) of each level


class DamagedShardError(ConfigError):
    """A shard does not hold what was written."""


def write_shard(path: Path, bases: str, entries: Mapping[str, tuple]) -> None:
    """Write a shard, completely or not at all.

    ``entries`` are an image's (H, W) and its maps (d, h, w), float16, one per level, by key.
    """
    rows, images = {}, {}
    for key, (image_shape, maps) in entries.items():
        shapes = [level.shape for level in maps]
        rows[key] = np.concatenate([level.ravel() for level in maps])
        images[key] = _checksum(key, image_shape, shapes, rows[key]), image_shape, shapes
    # One entry, since the library writes several in a random order, and shards are reproducible.
    write_bytes(path, save(rows, {'index': json.dumps({'bases': bases, 'images': images})}))


def read_index(path: Path, number: int, bases: str, known: dict[tuple, tuple]) -> dict[str, Entry]:
    """Return the entries of a shard; {} if it is missing, cut short, or of another cache.

    Shapes that equal one of the ``known``, of earlier entries, share one object with it.
    """
    index = {}
    try:
        with path.open('rb') as file:
            size = os.fstat(file.fileno()).st_size
            start = 8 + int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(start - 8)) if start < size else {}
        content = json.loads(header.pop('__metadata__')['index'])
        for key, tensor in header.items():
            crc32, image_shape, shapes = content['images'][key]
            shapes = tuple(map(tuple, shapes))
            offset = start + tensor['data_offsets'][0]
            shapes = known.setdefault(shapes, shapes)
            index[key] = Entry(number, offset, crc32, tuple(image_shape), shapes)
        end = start + max(tensor['data_offsets'][1] for tensor in header.values())
        return index if end == size and content['bases'] == bases else {}
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return {}


def read_row(path: Path, key: str, entry: Entry, check: bool) -> np.ndarray:
    """Read the values of an image, and verify its checksum if ``check`` is set."""
    row = np.empty(sum(d * h * w for d, h, w in entry.map_shapes), np.float16)
    try:
        # Not the library's `safe_open`, which holds the GIL while it waits for the disk.
        with path.open('rb') as file:
            file.seek(entry.offset)
            num_bytes = file.readinto(row)
    except OSError as error:
        raise _damaged(path, str(error)) from error
    found = _checksum(key, entry.image_shape, entry.map_shapes, row) if check else entry.crc32
    if num_bytes != row.nbytes or found != entry.crc32:
        raise _damaged(path, 'a checksum differs')
    return row


def split_levels(row: np.ndarray, shapes: Sequence[tuple]) -> list[np.ndarray]:
    """Split an image's values, level after level, into a map (d, h, w) per level."""
    ends = np.cumsum([d * h * w for d, h, w in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(row, ends), shapes)]


def _checksum(key: str, image_shape: Sequence, shapes: Sequence, row: np.ndarray) -> int:
    return zlib.crc32(row, zlib.crc32(json.dumps([key, image_shape, shapes]).encode()))


def _damaged(path: Path, reason: str) -> DamagedShardError:
    return DamagedShardError(
        f'teacher cache: shard {path} is damaged ({reason}); delete it and run '
        f'tools/cache_teacher.py again, which rebuilds it'
    )
