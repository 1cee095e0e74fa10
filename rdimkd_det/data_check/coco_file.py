"""A COCO annotation file, read once; what MMDetection could not use in it is refused."""

from __future__ import annotations

import gc
import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import repeat
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..files.annotations import LISTS, listed_keys

EXPECTED = 'a COCO file is a JSON object with the lists images, annotations and categories'
# The polygons are two thirds of COCO's files, and nothing here needs them.
POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\]\[\d.,\s+\-eE]*\]')


class CocoFile:
    """The lists of a COCO file and, as arrays over its annotations, what loading looks at.

    Raises:
        ConfigError: The file, or an entry in it, is damaged or lacks something. The arrays raise
            it when they are first used.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        content = read_json(path)
        if 'categories' not in content:
            raise ConfigError(f"annotations {path} lack 'categories'; {EXPECTED}.")
        self.lists = {name: content.get(name, []) for name in LISTS}
        for name, entries in self.lists.items():
            if not isinstance(entries, list):
                got = reprlib.repr(entries)
                raise ConfigError(f'annotations {path} cannot be used: {name!r} must be a list, '
                                  f'got {got}.')  # fmt: skip
        self.annotations, self.image_entries = self.lists['annotations'], self.lists['images']
        self.category_ids = self.column('categories', 'id')
        self.names = self.column('categories', 'name')
        entry_ids = self.column('images', 'id')
        # The last entry of an id is the one that pycocotools keeps, in the place of the first.
        self.images = dict(zip(entry_ids, self.image_entries))
        self.image_ids = list(self.images)

    def column(self, name: str, key: str) -> list:
        """Return what all entries of a list have at a key, which can be in a set."""
        values = self._values(name, key, self.lists[name])
        try:
            set(values)
        except TypeError:
            wrong = next(n for n, value in enumerate(values) if isinstance(value, (list, dict)))
            what = f'cannot be used: {key!r} must be a number or text'
            raise self._wrong(name, what, self.lists[name][wrong]) from None
        return values

    @cached_property
    def image_index(self) -> np.ndarray:
        """Of each annotation, the place of its image in ``image_ids``; -1 where there is none."""
        return _places(self.column('annotations', 'image_id'), self.image_ids)

    @cached_property
    def category_index(self) -> np.ndarray:
        """Of each annotation, the place of its category; -1 where there is none."""
        return _places(self.column('annotations', 'category_id'), self.category_ids)

    @cached_property
    def ignored(self) -> np.ndarray:
        """Annotations that loading skips before it looks at anything else."""
        return self._truth('ignore')

    @cached_property
    def crowd(self) -> np.ndarray:
        """Annotations of crowds, by Python's truth, which is what loading and evaluator go by."""
        return self._truth('iscrowd')

    @cached_property
    def boxes(self) -> np.ndarray:
        """x, y, width and height of each annotation (n, 4); NaN where loading reads none."""
        return self._of_read('bbox', (4,), '[x, y, width, height]')

    @cached_property
    def areas(self) -> np.ndarray:
        """The area of each annotation; NaN where loading reads none."""
        return self._of_read('area', ())

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height of each image (n, 2)."""
        self.column('images', 'file_name')
        for key in ('width', 'height'):
            self._values('images', key, self.image_entries)  # of images that are not used, too
        entries = list(self.images.values())
        return np.stack([self._numbers('images', it, entries) for it in ('width', 'height')], 1)

    def _truth(self, key: str) -> np.ndarray:
        values = map(dict.get, self.annotations, repeat(key))  # no loop in Python, for speed
        return np.fromiter(map(bool, values), bool, len(self.annotations))

    def _of_read(self, key: str, shape: tuple, form: str = 'a number') -> np.ndarray:
        read = (self.image_index >= 0) & ~self.ignored
        entries = (
            self.annotations if read.all() else [self.annotations[n] for n in read.nonzero()[0]]
        )
        array = np.full((len(read), *shape), np.nan)
        array[read] = self._numbers('annotations', key, entries, shape, form)
        return array

    def _numbers(
        self, name: str, key: str, entries: list, shape: tuple = (), form: str = 'a number'
    ) -> np.ndarray:
        """Return what entries have at a key, a number or a list of numbers each, as an array."""
        values = self._values(name, key, entries)
        array = _as_array(values, shape)
        if array is None:
            wrong = next(n for n, it in enumerate(values) if _as_array([it], shape) is None)
            raise self._wrong(name, f'cannot be used: {key!r} must be {form}', entries[wrong])
        return array

    def _values(self, name: str, key: str, entries: list) -> list:
        try:
            return list(map(itemgetter(key), entries))
        except (KeyError, TypeError):
            wrong = next(it for it in entries if not isinstance(it, Mapping) or key not in it)
            raise self._wrong(name, f"lack '{key}'", wrong) from None

    def _wrong(self, name: str, what: str, entry: object) -> ConfigError:
        kind, keys = LISTS[name]
        return ConfigError(
            f'annotations {self.path} {what} in the {kind} {reprlib.repr(entry)}; each needs '
            f'{listed_keys(keys)}.'
        )


def read_json(path: str) -> dict:
    """Read a JSON file that holds an object, without the polygons in it."""
    content = Path(path).read_bytes()
    if content.startswith(b'\xef\xbb\xbf'):
        raise ConfigError(
            f'annotations {path} begin with a byte order mark; save the file as UTF-8 without one.'
        )
    if not re.match(rb'\s*\{', content):  # a table, text of YOLO, an archive, UTF-16, ...
        raise ConfigError(
            f'annotations {path} cannot be used: {EXPECTED}, in UTF-8, and the file begins with '
            f'{reprlib.repr(content[:20])}.'
        )
    with _garbage_collection_paused():
        try:
            return json.loads(POLYGONS.sub(b'"segmentation":[]', content).decode())
        except ValueError:
            pass  # the place of the damage is that in the whole file
        try:
            return json.loads(content.decode())
        except UnicodeDecodeError as error:
            raise ConfigError(
                f'annotations {path} are not UTF-8; save them so: {error}.'
            ) from error
        except ValueError as error:
            raise ConfigError(f'annotations {path} are cut off or damaged: {error}.') from error


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Millions of new lists and dicts would start it again and again: half of the time of JSON."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _places(values: Iterable, ids: Sequence) -> np.ndarray:
    places = {value: place for place, value in enumerate(ids)}
    return np.fromiter(map(places.get, values, repeat(-1)), np.int64)


def _as_array(values: list, shape: tuple) -> np.ndarray | None:
    """Return numbers, or lists of them, as an array (n, *shape); None if they are anything else."""
    if not values:
        return np.zeros((0, *shape))
    try:
        array = np.array(values)
    except ValueError:  # of different lengths
        return None
    fits = array.shape == (len(values), *shape) and array.dtype.kind in 'biuf'
    return array.astype(float) if fits else None
