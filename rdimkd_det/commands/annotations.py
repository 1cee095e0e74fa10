"""Explains exceptions raised while annotations are read, by file and entry."""

from __future__ import annotations

import reprlib
import traceback
from collections.abc import Mapping
from types import FrameType

from mmengine.dataset import BaseDataset

from ..errors import ConfigError
from ..names import explain
from ..preflight.classes import listed

# Local variables in which mmdet and pycocotools hold an entry, and the kind of the entry.
ENTRIES = {'ann': 'annotation', 'img_info': 'image', 'img': 'image', 'cat': 'category'}
NEEDED = {
    'annotation': 'id, image_id, category_id, bbox ([x, y, width, height]) and area',
    'image': 'id, file_name, width and height',
    'category': 'id and name',
}
HOST = ('mmdet', 'pycocotools')
OF_DATA = (KeyError, TypeError, ValueError, AssertionError, AttributeError, IndexError)


def annotation_mistake(error: Exception) -> ConfigError | None:
    """Return an exception that names file and entry, if ``error`` came from reading annotations.

    Args:
        error (Exception): From mmdet (3.3, OneDL 3.5) or pycocotools, which name neither.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    path = next(filter(None, map(_file_read, frames)), None)
    in_host = frames[-1].f_globals.get('__name__', '').split('.')[0] in HOST
    if path is not None and in_host and isinstance(error, OF_DATA):
        return ConfigError(f'annotations {path} {_lack(error, frames[-1])}.')
    for frame in frames:
        dataset = frame.f_locals.get('self')
        if frame.f_code.co_name == '_serialize_data' and not dataset.data_list:
            return ConfigError(_nothing_left(dataset))
    return None


def _file_read(frame: FrameType) -> str | None:
    """Return the annotation file that a function of a dataset or of pycocotools reads."""
    if frame.f_code.co_name == 'load_data_list':
        return getattr(frame.f_locals.get('self'), 'ann_file', None)
    return frame.f_locals.get('annotation_file')


def _lack(error: Exception, frame: FrameType) -> str:
    """Describe what is missing or unusable in an entry or in the file."""
    key = error.args[0] if isinstance(error, KeyError) else None
    for name, kind in ENTRIES.items():
        entry = frame.f_locals.get(name)
        if isinstance(entry, Mapping) and key not in entry:
            what = f'cannot be used ({explain(error)}):' if key is None else f"lack '{key}' in"
            return f'{what} the {kind} {reprlib.repr(entry)}; each needs {NEEDED[kind]}'
    return f'cannot be used: {explain(error)}' if key is None else f"lack '{key}'"


def _nothing_left(dataset: BaseDataset) -> str:
    if dataset.test_mode:
        return f'annotations {dataset.ann_file} have no image.'
    least = (dataset.filter_cfg or {}).get('min_size', 0)
    size = f', and of {least} pixels or more (filter_cfg.min_size),' if least else ''
    classes = listed(dataset.metainfo.get('classes') or (), limit=10)
    return (
        f'the training set has no image with a box of your classes ({classes}){size} in '
        f'{dataset.ann_file}; compare metainfo.classes with its categories, and see whether it '
        f'has annotations.'
    )
