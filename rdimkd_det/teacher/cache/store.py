"""``TeacherCache``: the teacher's projected maps of every training image, on disk.

A directory holds ``cache.json`` (what was cached), ``bases.safetensors`` (:class:`LevelTensors`
per level), and shards, e.g. ``00007.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...errors import ConfigError
from ...files.atomic import write_bytes, write_json
from ...projections import Projection
from .shards import DamagedShardError, Entry, read_index, read_row, split_levels, write_shard

FORMAT = 3


class LevelTensors(NamedTuple):
    """The tensors that a cache holds once per level, all float32."""

    basis: Tensor  # K (C, d)
    variance_kept: Tensor  # 0-dim, the share of the teacher's variance in the subspace
    padding: Tensor  # (d,), coordinates of the teacher's map where its input is padding

    def load_into(self, projection: Projection) -> None:
        """Give a projection the basis."""
        projection.load_state_dict({'basis': self.basis, 'variance_kept': self.variance_kept})


class TeacherCache:
    """A teacher cache on disk, whose entries are read and whose shards are written.

    Attributes:
        about (dict): What was cached. 'facts': what the cache depends on; 'taps': path of a tapped
            module of the teacher to [index, stride, channels] of its levels; 'levels':
            [tap, index] of the levels in an entry, in their order; 'num_entries';
            'shard_entries': entries per shard; 'entry_bytes': estimated size of an entry.
        tensors (list[LevelTensors]): One per level of an entry.
        entries (dict[str, Entry] | None): Image key to its entry; None until the index is loaded.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        text = (self.directory / 'cache.json').read_text(encoding='utf-8')
        try:
            self.about = json.loads(text)
            if self.about['format'] != FORMAT:
                raise ConfigError(
                    f'teacher cache {directory}: its format is {self.about["format"]}, and this '
                    f'version reads {FORMAT}; delete the directory and make the cache again: '
                    f'python tools/cache_teacher.py CONFIG --out {directory}'
                )
            content = (self.directory / 'bases.safetensors').read_bytes()
            if _digest(content) != self.about['bases']:
                raise ValueError('bases.safetensors is not what cache.json says')
            tensors = load(content)
            self.tensors = [
                LevelTensors(*(tensors[f'{number}.{field}'] for field in LevelTensors._fields))
                for number in range(len(self.about['levels']))
            ]
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ConfigError(
                f'teacher cache {directory} is damaged ({error}); delete it and make it again: '
                f'python tools/cache_teacher.py CONFIG --out {directory}'
            ) from error
        self.entries: dict[str, Entry] | None = None
        self._verified: set[str] = set()
        self._shapes: dict[tuple, tuple] = {}

    def __getstate__(self) -> dict:
        # The index has an entry per image, and is read again on demand.
        return {**vars(self), 'entries': None, '_verified': set()}

    @classmethod
    def create(
        cls, directory: Path, about: Mapping, tensors: Sequence[LevelTensors]
    ) -> TeacherCache:
        """Create a cache without shards; ``cache.json`` is written last."""
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            content = save(
                {
                    f'{number}.{field}': value.contiguous()
                    for number, of_level in enumerate(tensors)
                    for field, value in of_level._asdict().items()
                }
            )
            write_bytes(directory / 'bases.safetensors', content)
            about = {'format': FORMAT, **about, 'bases': _digest(content)}
            write_json(directory / 'cache.json', about)
        return cls(directory)

    @property
    def path_parts(self) -> int:
        """int: Number of the parts of a path that the keys of images have."""
        return self.about['facts']['path_parts']

    @property
    def num_shards(self) -> int:
        """int: Number of shards of the complete cache."""
        return -(-self.about['num_entries'] // self.about['shard_entries'])

    def missing_shards(self) -> list[int]:
        """Return the numbers of the shards that are missing or incomplete."""
        return [number for number in range(self.num_shards) if not self._read_index(number)]

    def write_shard(self, number: int, entries: Mapping[str, tuple]) -> None:
        """Write a shard, whole or not at all; see ``shards.write_shard``."""
        with _writing(self.directory):
            write_shard(self._path(number), self.about['bases'], entries)

    def load_index(self) -> None:
        """Load the index, unless it is loaded already; no shard may be missing."""
        if self.entries is not None:
            return
        indexes = [self._read_index(number) for number in range(self.num_shards)]
        missing = [self._path(n).name for n, index in enumerate(indexes) if not index]
        if missing:
            raise ConfigError(
                f'teacher cache {self.directory} is incomplete: {len(missing)} of '
                f'{self.num_shards} shards are missing (the first is {missing[0]}); run '
                f'tools/cache_teacher.py again to continue.'
            )
        self.entries = {key: entry for index in indexes for key, entry in index.items()}

    def find(self, key: str, image_shape: tuple[int, int]) -> Entry:
        """Return the location of the maps of an image that has this (H, W) in training."""
        self.load_index()
        entry = self.entries.get(key)
        if entry is None or entry.image_shape != tuple(image_shape):
            size = 'is not in it' if entry is None else f'was cached as {entry.image_shape}'
            raise ConfigError(
                f'teacher cache {self.directory}: image {key} of size {tuple(image_shape)} {size}; '
                f'the cache was made from other data; rebuild it for this config.'
            )
        return entry

    def read(self, key: str, image_shape: tuple[int, int]) -> list[np.ndarray]:
        """Read the maps (d, h, w), float16, of one image; several threads may call this.

        The checksum is verified only the first time that an image is read.
        """
        entry = self.find(key, image_shape)
        row = read_row(self._path(entry.shard), key, entry, check=key not in self._verified)
        self._verified.add(key)
        return split_levels(row, entry.map_shapes)

    def damage(self, number: int) -> str | None:
        """Read and verify a whole shard, and return what is wrong with it."""
        index = self._read_index(number)
        if not index:
            return f'shard {self._path(number)} is missing or cut short'
        try:
            for key, entry in index.items():
                read_row(self._path(number), key, entry, check=True)
        except DamagedShardError as error:
            return str(error)
        return None

    def _read_index(self, number: int) -> dict[str, Entry]:
        return read_index(self._path(number), number, self.about['bases'], self._shapes)

    def _path(self, number: int) -> Path:
        return self.directory / f'{number:05d}.safetensors'


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f'teacher cache {directory} cannot be written: {error}; finished shards are intact. '
            f'Make room, or the folder writable, and run the same command again to continue.'
        ) from error
