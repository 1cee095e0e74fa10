"""Class names of data sets in a config, without reading annotations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from mmdet.registry import DATASETS

from ..errors import ConfigError
from ..host.registry import find_type
from ..options import explained


def classes_of(dataset: Mapping, split: str, things: bool = False) -> tuple[str, ...] | None:
    """Return the class names of a dataset without wrappers; None if it has none.

    With ``things``, a panoptic data set's classes that have boxes.
    """
    kind = dataset_type(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return None
    metainfo = copy.deepcopy(dataset.get('metainfo'))
    if isinstance(metainfo, Mapping):  # mmengine would try to open other strings as files
        known = ('classes', 'CLASSES', 'thing_classes')
        metainfo = {key: metainfo[key] for key in known if key in metainfo}
    # The Runner would refuse such a dataset, too.
    with explained(f'{split}_dataloader.dataset: its classes cannot be read'):
        loaded = kind._load_metainfo(metainfo)
        of_things = {'classes': loaded.get('thing_classes')} if things else {}
        return names_in(of_things) or names_in(loaded)


def dataset_type(dataset: Mapping) -> type | None:
    """Return the class of a dataset; None if its config names no known type."""
    return find_type(dataset, DATASETS) if dataset.get('type') else None


def names_in(metainfo: Mapping) -> tuple[str, ...] | None:
    """Return the class names in a dataset's or checkpoint's metainfo; None if it has none."""
    # mmdet 2 wrote CLASSES.
    names = metainfo.get('classes') or metainfo.get('CLASSES')
    return (names,) if isinstance(names, str) else tuple(names or ()) or None


def check_class_names(split: str, dataset: Mapping) -> None:
    """Check that ``metainfo.classes`` is no single name, which would be split into letters."""
    metainfo = dataset.get('metainfo')
    names = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if isinstance(names, str) and '://' not in names and not Path(names).is_file():
        raise ConfigError(
            f'{split} data: metainfo.classes must be a tuple or list of names, got {names!r}; '
            f'write ({names!r},), with a comma.'
        )
