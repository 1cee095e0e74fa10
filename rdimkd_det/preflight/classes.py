"""Class names of the data and of the teacher, and the mapping between their labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from torch import nn

from ..errors import ConfigError
from ..files.checkpoints import read_checkpoint_safely
from ..files.configs import leaf_datasets, read_config
from ..host.registry import find_type
from ..options import explain
from ..teacher import Source


def data_classes(cfg: Config, splits: Sequence[str] = ('train',)) -> tuple[str, ...] | None:
    """Return the class names of a config's dataset, without reading its annotations, or None.

    Of the splits, any of 'train', 'val' and 'test', the first with class names counts.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        classes = classes_of(next(leaf_datasets(dataset), {}), split)
        if classes:
            return classes
    return None


def classes_of(dataset: Mapping, split: str) -> tuple[str, ...] | None:
    """Return the class names of a dataset without wrappers; None if it has none."""
    kind = dataset_type(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return None
    metainfo = copy.deepcopy(dataset.get('metainfo'))
    if isinstance(metainfo, Mapping):  # mmengine would try to open other strings as files
        metainfo = {key: metainfo[key] for key in ('classes', 'CLASSES') if key in metainfo}
    try:
        return _names(kind._load_metainfo(metainfo))
    except Exception as error:  # the Runner would refuse this dataset, too
        raise ConfigError(
            f'{split}_dataloader.dataset: its classes cannot be read: {explain(error)}'
        ) from error


def dataset_type(dataset: Mapping) -> type | None:
    """Return the class of a dataset; None if its config names no known type."""
    return find_type(dataset, DATASETS) if dataset.get('type') else None


def check_class_names(split: str, dataset: Mapping) -> None:
    """Check that ``metainfo.classes`` is no single name, which would be split into letters."""
    metainfo = dataset.get('metainfo')
    names = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if isinstance(names, str) and '://' not in names and not Path(names).is_file():
        raise ConfigError(
            f'{split} data: metainfo.classes must be a tuple or list of names, got {names!r}; '
            f'write ({names!r},), with a comma.'
        )


def teacher_classes(source: Source) -> tuple[str, ...] | None:
    """Return the class names in a teacher's checkpoint, otherwise those of its config's dataset."""
    if source.model is None:
        return None
    content = read_checkpoint_safely(source.checkpoint, who='teacher')
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        classes = _names(meta.get('dataset_meta') or {}) or _names(meta)
        if classes:
            return classes
    try:
        return data_classes(read_config(source.config, 'teacher'), ('train', 'val', 'test'))
    except ConfigError:  # the teacher's data need not be there
        return None


def _names(metainfo: Mapping) -> tuple[str, ...] | None:
    # mmdet 2 wrote CLASSES.
    names = metainfo.get('classes') or metainfo.get('CLASSES')
    return (names,) if isinstance(names, str) else tuple(names or ()) or None


def label_map(teacher: Sequence[str], data: Sequence[str]) -> dict[int, int]:
    """Map the teacher's labels to the data's, for the classes that both have."""
    of_data = {name: label for label, name in enumerate(data)}
    return {label: of_data[name] for label, name in enumerate(teacher) if name in of_data}


def num_classes(model: nn.Module) -> dict[str, int]:
    """Return the number of classes of each head, by path, as ``NumClassCheckHook`` checks it."""
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and 'head' in name
        and not name.startswith('distill.')
        and not name.endswith(('rpn_head', 'semantic_head'))
    }


def listed(names: Sequence, limit: int = 3) -> str:
    """Return the first names as text, with '...' if there are more."""
    return ', '.join(map(str, names[:limit])) + (', ...' if len(names) > limit else '')
