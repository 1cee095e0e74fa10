"""Reads configs, given as a path, as ``'mmdet::...'`` or already read, and looks entries up."""

from __future__ import annotations

import copy
import json
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config
from mmengine.registry import LOOPS, DefaultScope
from mmengine.runner import IterBasedTrainLoop

from ..errors import ConfigError
from ..host.patches import own_config
from ..host.registry import find_type, import_package
from ..host.versions import FITTING, check_package
from ..options import SCOPE, type_name

SUFFIXES = ('.py', '.json', '.yaml', '.yml')  # of the configs that mmengine reads


class UnreadableConfigError(ConfigError):
    """A config file is missing or fails. If it is a teacher's, only training stops."""


def read_config(config: str | dict, who: str) -> Config:
    """Read a config: a path, ``'mmdet::...'`` for a file of MMDetection, or the config itself.

    Raises:
        UnreadableConfigError: There is no such file, or it fails.
        ConfigError: ``config`` is neither a path nor a config.
    """
    if isinstance(config, (Mapping, Config)):
        return config if isinstance(config, Config) else Config(dict(config))
    if not isinstance(config, (str, Path)):
        raise ConfigError(f'{who}: config must be a path or a config with a model, got {config!r}.')
    name = str(config)
    try:
        return open_config(name)
    except Exception as error:  # a config is Python: anything can go wrong in it
        kind = '' if isinstance(error, ConfigError) else f'{type(error).__name__}: '
        message = f'{kind}{error}'
        raise UnreadableConfigError(f'{who}: config {name} cannot be read: {message}') from error


def open_config(name: str) -> Config:
    """Read a config file, a path or ``'mmdet::...'``; any exception that it raises is passed on.

    Raises:
        ConfigError: The config needs MMYOLO or MMRotate, and that is missing or does not fit; or
            ``name`` is another file, such as a checkpoint.
    """
    # Config.fromfile resolves 'mmdet::' in `_base_` only; get_config resolves it here, and would
    # install what is missing.
    path = own_config(name) or name
    package, prefix, _ = path.partition('::')
    if package in MODULE2PACKAGE:
        check_package(package)
    if not prefix and Path(path).is_file() and Path(path).suffix not in SUFFIXES:
        raise ConfigError(
            f'{path} is no config, whose name ends with {", ".join(SUFFIXES)}; of a detector, the '
            f'config comes before the checkpoint.'
        )
    try:
        config = get_config(path) if prefix else Config.fromfile(path)
    except (ImportError, AssertionError) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        _check_packages(f'{error} {frames[-1].f_globals["__name__"]}')
        raise
    named = [it.get(key) for it in mappings(config.to_dict()) for key in ('type', SCOPE)]
    _check_packages(f'{config.get("default_scope")} {named}')
    hand_in_preprocessor(config)
    drop_scope_of_collate(config)
    return config


def _check_packages(text: str) -> None:
    for name in FITTING:
        if re.search(rf'\b{name}\b', text):
            check_package(name)


def hand_in_preprocessor(config: Config) -> None:
    """Give a model the ``data_preprocessor`` at its config's top, as mmengine's Runner does."""
    if config.get('data_preprocessor') and isinstance(config.get('model'), Mapping):
        config.model.setdefault('data_preprocessor', config.data_preprocessor)


def drop_scope_of_collate(config: Config) -> None:
    """Let data loaders of a base like ``'mmyolo::...'`` be built.

    mmengine (0.10.7) marks all entries of such a base with their scope, and would pass that of
    ``collate_fn`` on to the function.
    """
    for split in ('train', 'val', 'test'):
        loader = config.get(f'{split}_dataloader')
        collate = loader.get('collate_fn') if isinstance(loader, Mapping) else None
        if isinstance(collate, Mapping):
            collate.pop(SCOPE, None)


def mappings(node: object) -> Iterator[Mapping]:
    """Yield all mappings in a config entry at any depth, itself included, outer ones first.

    If the caller modifies a mapping, the iteration continues with its new values.
    """
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node
    for child in children if isinstance(node, (Mapping, list, tuple)) else ():
        yield from mappings(child)


def leaves(node: object, place: str = '') -> Iterator[tuple[str, object]]:
    """Yield the dotted place and the value of all that a config entry holds.

    A list is such a value, unless it holds dicts or lists.
    """
    if isinstance(node, Mapping) and node:
        items = node.items()
    elif isinstance(node, (list, tuple)) and any(isinstance(it, (Mapping, list)) for it in node):
        items = enumerate(node)
    else:
        yield place, node
        return
    for key, value in items:
        yield from leaves(value, f'{place}.{key}' if place else str(key))


def leaf_datasets(dataset: object) -> Iterator[Mapping]:
    """Yield the configs of the datasets below all wrappers, e.g. ``ConcatDataset``."""
    if not isinstance(dataset, Mapping):
        return
    wrapped = dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else None)
    if wrapped is None:
        yield dataset
    for each in wrapped if isinstance(wrapped, (list, tuple)) else ():
        yield from leaf_datasets(each)


def leaves_of(cfg: Config, split: str) -> Iterator[Mapping]:
    """Yield :func:`leaf_datasets` of a config's 'train', 'val' or 'test' data, if it has any."""
    return leaf_datasets((cfg.get(f'{split}_dataloader') or {}).get('dataset'))


def annotation_path(entry: Mapping) -> str | None:
    """Return the annotation file of a dataset or a metric, with its root; None if it has none."""
    file = entry.get('ann_file')
    return os.path.join(str(entry.get('data_root') or ''), file) if isinstance(file, str) else None


def reads_local_files(entry: Mapping) -> bool:
    """Return whether a data set or a transform reads its files from the local disk."""
    backend = entry.get('backend_args') or entry.get('file_client_args') or {}
    return backend.get('backend', 'local') in ('local', 'disk')


def teacher_entries(teacher: object) -> list[tuple[str, Mapping]]:
    """Return the entries of ``model.teacher`` as (name, entry).

    The name of a single one is '', those of several are 't0', 't1', ... where an entry has none.
    """
    if isinstance(teacher, Mapping):
        return [('', teacher)]
    entries = [entry if isinstance(entry, Mapping) else {} for entry in teacher or ()]
    return [(entry.get('name', f't{n}'), entry) for n, entry in enumerate(entries)]


def counts_iterations(config: Config) -> bool:
    """Return whether a training run counts iterations instead of epochs."""
    loop = config.get('train_cfg') or {}
    kind = find_type(loop, LOOPS) if loop.get('type') else None
    iterations = isinstance(kind, type) and issubclass(kind, IterBasedTrainLoop)
    return iterations or loop.get('by_epoch') is False


def without_cache(cfg: Config) -> Config:
    """Return a copy of a config in which every teacher is live, not cached."""
    cfg = copy.deepcopy(cfg)
    model = cfg.get('model')
    if isinstance(model, Mapping):
        for _, teacher in teacher_entries(model.get('teacher')):
            teacher.pop('cache', None)
    return cfg


def config_name(config: str | dict) -> str:
    """Return what messages call a config that was given as a path, or as a dict."""
    return str(config) if isinstance(config, (str, Path)) else '(given as a dict)'


def as_json(value: object) -> object:
    """Convert a config entry to JSON types, as if it had been saved and loaded."""
    return json.loads(json.dumps(value, default=lambda kind: getattr(kind, '__name__', str(kind))))


def read_detector_config(config: str | dict) -> ConfigDict:
    """Return the model config of a teacher; if it is a distilled detector, that of its student.

    Raises:
        UnreadableConfigError: There is no such file, or it fails.
        ConfigError: The config holds no detector with a backbone.
    """
    content = read_config(config, 'teacher')
    model = content.get('model')
    if isinstance(model, Mapping) and 'student' in model:
        model = model['student']
    if not isinstance(model, Mapping) or 'backbone' not in model:
        hint = ''
        if isinstance(model, Mapping) and 'backbone' in (model.get('detector') or ()):
            hint = f'; give a config whose model is the detector in its {type_name(model)}'
        raise ConfigError(
            f'teacher: config {config_name(config)} holds no detector: model.backbone is '
            f'missing{hint}.'
        )
    return _in_its_scope(ConfigDict(copy.deepcopy(dict(model))), content.get('default_scope'))


def _in_its_scope(model: ConfigDict, scope: object) -> ConfigDict:
    """Note the scope of a model's types, unless it and the scope of the run are MMDetection's."""
    current = DefaultScope.get_current_instance()
    of_run = 'mmdet' if current is None else current.scope_name
    if isinstance(scope, str) and {scope, of_run} != {'mmdet'}:
        import_package(scope)
        for entry in (model, *model.values()):
            if isinstance(entry, ConfigDict) and 'type' in entry:
                entry.setdefault(SCOPE, scope)
    return model
