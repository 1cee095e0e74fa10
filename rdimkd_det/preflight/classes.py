"""Names of classes: of the data, of the teacher, and which of them are the same."""

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
from ..names import explain


def data_classes(cfg: Config, splits: Sequence[str] = ('train',)) -> tuple[str, ...] | None:
    """Class names of a config's data set, read without its annotations.

    Args:
        cfg (Config): Config of a run.
        splits (Sequence[str]): Of 'train', 'val' and 'test'; the first that has names counts.

    Returns:
        tuple[str, ...] | None: None where the data set names none.

    Raises:
        ConfigError: What names them is something else.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        classes = classes_of(next(leaf_datasets(dataset), {}), split)
        if classes:
            return classes
    return None


def classes_of(dataset: Mapping, split: str) -> tuple[str, ...] | None:
    """Class names of a data set without wrappers; None where it names none.

    Args:
        dataset (Mapping): Its config.
        split (str): 'train', 'val' or 'test', for the message.

    Raises:
        ConfigError: What names them is something else.
    """
    kind = dataset_type(dataset)
    if not hasattr(kind, '_load_metainfo'):
        return None
    metainfo = copy.deepcopy(dataset.get('metainfo'))
    if isinstance(metainfo, Mapping):  # other strings would be looked for as files, and logged
        metainfo = {key: metainfo[key] for key in ('classes', 'CLASSES') if key in metainfo}
    try:
        return _names(kind._load_metainfo(metainfo))
    except Exception as error:  # of a data set that the Runner would refuse, too
        raise ConfigError(
            f'{split}_dataloader.dataset: its classes cannot be read: {explain(error)}'
        ) from error


def dataset_type(dataset: Mapping) -> type | None:
    """The class of a data set; None if its config names none that there is."""
    kind = dataset.get('type')
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def check_class_names(split: str, dataset: Mapping) -> None:
    """Check that ``metainfo.classes`` is no single name, which the host would take for its letters.

    Args:
        split (str): 'train', 'val' or 'test', for the message.
        dataset (Mapping): Config of a data set without wrappers.

    Raises:
        ConfigError: It is a string, and no file that lists the names, as mmengine would read.
    """
    metainfo = dataset.get('metainfo')
    names = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if isinstance(names, str) and '://' not in names and not Path(names).is_file():
        raise ConfigError(
            f'{split} data: metainfo.classes must be a tuple or list of names, got {names!r}; '
            f'write ({names!r},), with a comma.'
        )


def teacher_classes(config: str | dict, checkpoint: str) -> tuple[str, ...] | None:
    """Class names of a teacher: its checkpoint's, else those of its config's data set."""
    content = read_checkpoint_safely(checkpoint, who='teacher')
    meta = content.get('meta') if isinstance(content, Mapping) else None
    if isinstance(meta, Mapping):
        classes = _names(meta.get('dataset_meta') or {}) or _names(meta)
        if classes:
            return classes
    try:
        return data_classes(read_config(config, 'teacher'), ('train', 'val', 'test'))
    except ConfigError:  # the teacher's data need not be there
        return None


def _names(metainfo: Mapping) -> tuple[str, ...] | None:
    # mmdet 2 wrote CLASSES.
    names = metainfo.get('classes') or metainfo.get('CLASSES')
    return (names,) if isinstance(names, str) else tuple(names or ()) or None


def label_map(teacher: Sequence[str], data: Sequence[str]) -> dict[int, int]:
    """Labels of classes that both know: the teacher's to the data's."""
    of_data = {name: label for label, name in enumerate(data)}
    return {label: of_data[name] for label, name in enumerate(teacher) if name in of_data}


def num_classes(model: nn.Module) -> dict[str, int]:
    """Number of classes of each head, by its path; what mmdet's ``NumClassCheckHook`` looks at."""
    return {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and 'head' in name
        and not name.startswith('distill.')
        and not name.endswith(('rpn_head', 'semantic_head'))
    }


def listed(names: Sequence, limit: int = 3) -> str:
    """The first of some names."""
    return ', '.join(map(str, names[:limit])) + (', ...' if len(names) > limit else '')
