"""``TeacherCache``: the teacher's projected maps of every training image, on disk.

A directory holds ``cache.json`` (what was cached), ``bases.npz`` (a :class:`LevelArrays` per
level), and shards: ``00007.npy``, one row of half-precision numbers, and ``00007.json``, its index.
The index of a shard is written last: a shard exists if its index does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ConfigError
from ..files.whole import write_text, written_whole

FORMAT = 1


class LevelArrays(NamedTuple):
    """The arrays that a cache holds once per level, all float32.

    Attributes:
        basis (np.ndarray): Basis K (C, d).
        variance_kept (np.ndarray): 0-dim, the share of the teacher's variance in the subspace.
        padding (np.ndarray): Coordinates (d,) of the teacher's map where its input is padding.
    """

    basis: np.ndarray
    variance_kept: np.ndarray
    padding: np.ndarray


class Entry(NamedTuple):
    """The location of one image's maps.

    Attributes:
        shard (int): Number of the shard.
        offset (int): Position of the first byte in the shard's file.
        crc32 (int): Checksum of all bytes of the entry.
        image_shape (tuple[int, int]): (H, W) of the image without padding.
        map_shapes (tuple): (d, h, w) of each level.
    """

    shard: int
    offset: int
    crc32: int
    image_shape: tuple[int, int]
    map_shapes: tuple[tuple[int, int, int], ...]

    @property
    def count(self) -> int:
        """int: Number of values in the entry."""
        return sum(d * h * w for d, h, w in self.map_shapes)


class DamagedShardError(ConfigError):
    """A shard does not hold what was written."""


class TeacherCache:
    """A teacher cache on disk, whose entries are read and whose shards are written.

    Args:
        directory (str | Path): Directory of the cache.

    Raises:
        FileNotFoundError: There is no cache.
        ConfigError: The cache is damaged, or its format is of another version of the package.

    Attributes:
        about (dict): What was cached. 'facts': what the cache depends on; 'taps': path of a tapped
            module of the teacher to [index, stride, channels] of its levels; 'levels':
            [tap, index] of the levels in an entry, in their order; 'num_entries';
            'shard_entries': entries per shard; 'entry_bytes': estimated size of an entry.
        arrays (list[LevelArrays]): One per level of an entry.
        entries (dict[str, Entry] | None): Image key to its entry; None until the index is loaded.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        text = (self.directory / 'cache.json').read_text(encoding='utf-8')
        try:
            self.about = json.loads(text)
            if self.about['format'] != FORMAT:
                raise ConfigError(
                    f'teacher cache {directory}: format {self.about["format"]} is not {FORMAT}, '
                    f'which this version reads; rebuild it with tools/cache_teacher.py.'
                )
            bases = self.directory / 'bases.npz'
            if _digest(bases.read_bytes()) != self.about['bases']:
                raise ValueError('bases.npz is not what cache.json says')
            self.arrays = _read_arrays(bases, len(self.about['levels']))
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f'teacher cache {directory} is damaged ({error}); delete it and rebuild it.'
            ) from error
        self.entries: dict[str, Entry] | None = None
        self._verified: set[str] = set()
        self._shapes: dict[tuple, tuple] = {}

    def __getstate__(self) -> dict:
        # The index has an entry per image, and is read again on demand.
        return {**vars(self), 'entries': None, '_verified': set()}

    @classmethod
    def create(cls, directory: Path, about: Mapping, arrays: Sequence[LevelArrays]) -> TeacherCache:
        """Create a cache without shards; ``cache.json`` is written last.

        Args:
            directory (Path): Directory of the cache, created if missing.
            about (Mapping): See :attr:`about`.
            arrays (Sequence[LevelArrays]): One per level of an entry.
        """
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            named = {
                f'{number}.{field}': value
                for number, of_level in enumerate(arrays)
                for field, value in of_level._asdict().items()
            }
            with written_whole(directory / 'bases.npz') as file:
                np.savez(file, **named)
            about = {
                'format': FORMAT,
                **about,
                'bases': _digest((directory / 'bases.npz').read_bytes()),
            }
            write_text(directory / 'cache.json', json.dumps(about, indent=1))
        return cls(directory)

    @property
    def num_shards(self) -> int:
        """int: Number of shards of the complete cache."""
        return -(-self.about['num_entries'] // self.about['shard_entries'])

    def missing_shards(self) -> list[int]:
        """Return the numbers of the shards that are missing or incomplete."""
        return [number for number in range(self.num_shards) if not self._read_index(number)]

    def remove_leftovers(self) -> None:
        """Remove the temporary files of processes that were killed."""
        for path in self.directory.glob('.*.part'):
            path.unlink(missing_ok=True)

    def write_shard(self, number: int, entries: Mapping[str, tuple]) -> None:
        """Write a shard, whole or not at all.

        Args:
            number (int): Number of the shard.
            entries (Mapping[str, tuple]): Key of an image to its (H, W) and its maps (d, h, w), one
                per level, float16.
        """
        offset, index, rows = 0, {}, []
        for key, (image_shape, maps) in entries.items():
            row = np.concatenate([level.ravel() for level in maps])
            shapes = [level.shape for level in maps]
            index[key] = (offset, zlib.crc32(row), image_shape, shapes)
            offset += len(row)
            rows.append(row)
        with _writing(self.directory):
            with written_whole(self._path(number, 'npy')) as file:
                np.save(file, np.concatenate(rows), allow_pickle=False)
            content = {'bases': self.about['bases'], 'count': offset, 'entries': index}
            write_text(self._path(number, 'json'), json.dumps(content, separators=(',', ':')))

    def load_index(self) -> None:
        """Load the index, unless it is loaded already.

        Raises:
            ConfigError: Shards are missing.
        """
        if self.entries is not None:
            return
        indexes = [self._read_index(number) for number in range(self.num_shards)]
        missing = [self._path(n, 'npy').name for n, index in enumerate(indexes) if not index]
        if missing:
            raise ConfigError(
                f'teacher cache {self.directory} is incomplete: {len(missing)} of '
                f'{self.num_shards} shards are missing (the first is {missing[0]}); run '
                f'tools/cache_teacher.py again to continue.'
            )
        self.entries = {key: entry for index in indexes for key, entry in index.items()}

    def unload_index(self) -> None:
        """Free the memory of the index."""
        self.entries = None

    @property
    def index_loaded(self) -> bool:
        """bool: Whether the index is in memory."""
        return self.entries is not None

    def find(self, key: str, image_shape: tuple[int, int]) -> Entry:
        """Return the location of one image's maps.

        Args:
            key (str): See :func:`rdimkd_det.cache.images.entry_key`.
            image_shape (tuple[int, int]): (H, W) of the image in training.

        Raises:
            ConfigError: The image is not in the cache, or was cached at another size.
        """
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
        """Read the maps of one image (see :meth:`find`); several threads may call this.

        The checksum is verified only the first time that an image is read.

        Returns:
            list[np.ndarray]: Maps (d, h, w), float16, one per level.

        Raises:
            ConfigError: As :meth:`find`.
            DamagedShardError: The shard is damaged; the message names it.
        """
        entry = self.find(key, image_shape)
        row = self._read_row(entry, check=key not in self._verified)
        self._verified.add(key)
        return split_levels(row, entry.map_shapes)

    def damage(self, number: int) -> str | None:
        """Read and verify a whole shard.

        Args:
            number (int): Number of the shard.

        Returns:
            str | None: What is wrong with the shard, None if nothing.
        """
        index = self._read_index(number)
        if not index:
            return f'shard {self._path(number, "npy")} is missing or cut short'
        try:
            for entry in index.values():
                self._read_row(entry, check=True)
        except DamagedShardError as error:
            return str(error)
        return None

    def _read_row(self, entry: Entry, check: bool) -> np.ndarray:
        path = self._path(entry.shard, 'npy')
        row = np.empty(entry.count, np.float16)
        try:
            # Twice as fast as np.load(mmap_mode='r'), which parses the header each time. Keeping
            # the file open would save nothing more.
            with path.open('rb') as file:
                file.seek(entry.offset)
                num_bytes = file.readinto(row)
        except OSError as error:
            raise self._damaged(path, str(error)) from error
        if num_bytes != row.nbytes or (check and zlib.crc32(row) != entry.crc32):
            raise self._damaged(path, 'a checksum differs')
        return row

    def _damaged(self, path: Path, reason: str) -> DamagedShardError:
        return DamagedShardError(
            f'teacher cache: shard {path} is damaged ({reason}); delete it and run '
            f'tools/cache_teacher.py again, which rebuilds it'
        )

    def _read_index(self, number: int) -> dict[str, Entry]:
        """Return the entries of a shard; {} if it is missing, cut short, or of another cache."""
        try:
            content = json.loads(self._path(number, 'json').read_text(encoding='utf-8'))
            size = self._path(number, 'npy').stat().st_size
        except (FileNotFoundError, ValueError):
            return {}
        header = size - 2 * content['count']
        whole = header > 0 and header % np.lib.format.ARRAY_ALIGN == 0
        if content['bases'] != self.about['bases'] or not whole:
            return {}
        index = {}
        for key, (offset, crc32, image_shape, shapes) in content['entries'].items():
            shapes = tuple(map(tuple, shapes))
            shapes = self._shapes.setdefault(shapes, shapes)  # one object per distinct value
            start = header + 2 * offset
            index[key] = Entry(number, start, crc32, tuple(image_shape), shapes)
        return index

    def _path(self, number: int, suffix: str) -> Path:
        return self.directory / f'{number:05d}.{suffix}'


def split_levels(row: np.ndarray, shapes: Sequence[tuple]) -> list[np.ndarray]:
    """Split the row of values of an image into one map per level.

    Args:
        row (np.ndarray): All values of an image, level after level.
        shapes (Sequence[tuple]): (d, h, w) of each level.
    """
    ends = np.cumsum([d * h * w for d, h, w in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(row, ends), shapes)]


def _read_arrays(path: Path, num_levels: int) -> list[LevelArrays]:
    with np.load(path, allow_pickle=False) as file:
        return [
            LevelArrays(*(file[f'{number}.{field}'] for field in LevelArrays._fields))
            for number in range(num_levels)
        ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(
                f'teacher cache {directory}: the disk is full; finished shards are intact. Free '
                f'space and run the same command again to continue.'
            ) from error
        raise ConfigError(f'teacher cache {directory} cannot be written: {error}.') from error
