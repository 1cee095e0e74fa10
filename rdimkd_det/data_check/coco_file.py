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

    Args:
        path (str): The file.

    Raises:
        ConfigError: The file, or an entry in it, is damaged or lacks something. The arrays raise
            it when they are first used.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        content = read_json(path)
        if 'categories' not in content:
            raise ConfigError(f"annotations {path} lack 'categories'; {EXPECTED}.")
        lists = {name: content.get(name, []) for name in LISTS}
        for name, entries in lists.items():
            if not isinstance(entries, list):
                got = reprlib.repr(entries)
                raise ConfigError(f'annotations {path} cannot be used: {name!r} must be a list, '
                                  f'got {got}.')  # fmt: skip
        self.annotations: list = lists['annotations']
        self.image_entries: list = lists['images']
        self.categories: list = lists['categories']
        self.category_ids = self.column('categories', 'id')
        self.names = self.column('categories', 'name')
        entry_ids = self.column('images', 'id')
        # The last entry of an id is the one that pycocotools keeps, in the place of the first.
        self.images = dict(zip(entry_ids, self.image_entries))
        self.image_ids = list(self.images)

    def column(self, name: str, key: str) -> list:
        """Return what all entries of a list have at a key."""
        entries = {'annotations': self.annotations, 'images': self.image_entries,
                   'categories': self.categories}[name]  # fmt: skip
        try:
            values = list(map(itemgetter(key), entries))
            if key.endswith(('id', 'name')):
                set(values)  # a list, for example, cannot be one
            return values
        except (KeyError, TypeError, IndexError):
            for entry in entries:
                if not isinstance(entry, Mapping) or key not in entry:
                    raise self._lacks(name, key, entry) from None
            raise self._unusable(name, key, values, _hashable) from None

    @cached_property
    def annotation_ids(self) -> list:
        return self.column('annotations', 'id')

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
        return self._of_read('bbox', 4, '[x, y, width, height]')

    @cached_property
    def areas(self) -> np.ndarray:
        """The area of each annotation; NaN where loading reads none."""
        return self._of_read('area', 0, 'a number')

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height of each image (n, 2)."""
        for key in ('file_name', 'width', 'height'):
            self.column('images', key)
        sizes = [[entry['width'], entry['height']] for entry in self.images.values()]
        array = _numbers(sizes, 2)
        if array is None:
            wrong = next(entry for entry in self.images.values()
                         if not all(map(is_number, (entry['width'], entry['height']))))  # fmt: skip
            raise ConfigError(
                f'annotations {self.path} cannot be used: width and height must be numbers in '
                f'the image {reprlib.repr(wrong)}.'
            )
        return array

    def _truth(self, key: str) -> np.ndarray:
        values = map(dict.get, self.annotations, repeat(key))  # no loop in Python, for speed
        return np.fromiter(map(bool, values), bool, len(self.annotations))

    def _of_read(self, key: str, length: int, form: str) -> np.ndarray:
        read = (self.image_index >= 0) & ~self.ignored
        entries = (
            self.annotations if read.all() else [self.annotations[n] for n in read.nonzero()[0]]
        )
        missing = next((entry for entry in entries if key not in entry), None)
        if missing is not None:
            raise self._lacks('annotations', key, missing)
        values = list(map(itemgetter(key), entries))
        found = _numbers(values, length)
        if found is None:
            is_right = _is_box if length else is_number
            raise self._unusable('annotations', key, values, is_right, form, entries)
        array = np.full((len(read), length) if length else len(read), np.nan)
        array[read] = found
        return array

    def _lacks(self, name: str, key: str, entry: object) -> ConfigError:
        kind, needed = _needs(name)
        return ConfigError(
            f"annotations {self.path} lack '{key}' in the {kind} {reprlib.repr(entry)}; each "
            f'needs {needed}.'
        )

    def _unusable(self, name, key, values, is_right, form='a number or text', entries=None):
        kind, needed = _needs(name)
        entries = entries if entries is not None else getattr(self, name, self.image_entries)
        entry = next(entry for entry, value in zip(entries, values) if not is_right(value))
        return ConfigError(
            f'annotations {self.path} cannot be used: {key!r} must be {form} in the {kind} '
            f'{reprlib.repr(entry)}; each needs {needed}.'
        )


def _needs(name: str) -> tuple[str, str]:
    kind, keys = LISTS[name]
    return kind, listed_keys(keys)


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


def _numbers(values: list, length: int) -> np.ndarray | None:
    """Return lists of a length, or with 0 numbers, as an array; None if they are something else."""
    shape = (len(values), length) if length else (len(values),)
    if not values:
        return np.zeros(shape)
    try:
        array = np.array(values)
    except ValueError:  # of different lengths
        return None
    return array.astype(float) if array.shape == shape and array.dtype.kind in 'biuf' else None


def is_number(value: object) -> bool:
    """Return whether an array can hold a value as a number; an int has at most 64 bits there."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _hashable(value: object) -> bool:
    return not isinstance(value, (list, dict))
