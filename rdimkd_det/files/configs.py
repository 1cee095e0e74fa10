"""Reading config files: a path, ``'mmdet::...'``, or what has been read already."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config

from ..compat import own_config
from ..errors import ConfigError
from ..names import type_name


class UnreadableConfigError(ConfigError):
    """A config file is missing or fails. A teacher's stops training; testing does not care."""


def read_config(config: str | dict, who: str) -> Config:
    """Read a config file.

    Args:
        config (str | dict): Path, ``'mmdet::...'`` for a file that ships with MMDetection, or the
            config itself.
        who (str): Whose config it is, for the message.

    Raises:
        UnreadableConfigError: There is no such file, or it fails.
        ConfigError: It is neither a name nor a config.
    """
    if isinstance(config, (Mapping, Config)):
        return config if isinstance(config, Config) else Config(dict(config))
    if not isinstance(config, (str, Path)):
        raise ConfigError(f'{who}: config must be a path or a config with a model, got {config!r}.')
    name = str(config)
    try:
        return open_config(name)
    except Exception as error:  # a config is Python: anything can go wrong in it
        message = f'{type(error).__name__}: {error}'
        raise UnreadableConfigError(f'{who}: config {name} cannot be read: {message}') from error


def open_config(name: str) -> Config:
    """Read a config file; raises whatever it raises.

    Args:
        name (str): Path, or ``'mmdet::...'``.
    """
    # Config.fromfile does not resolve 'mmdet::' itself, only `_base_` and this do.
    path = own_config(name) or name
    return get_config(path) if '::' in path else Config.fromfile(path)


def mappings(node: object) -> Iterator[Mapping]:
    """All mappings in a config entry, itself included, at any depth, each before those in it.

    Args:
        node (object): A config entry. What the caller changes in a mapping counts for what follows.
    """
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node
    for child in children if isinstance(node, (Mapping, list, tuple)) else ():
        yield from mappings(child)


def leaf_datasets(dataset: object) -> Iterator[Mapping]:
    """Configs of the data sets below all wrappers, e.g. ``RepeatDataset`` and ``ConcatDataset``.

    Args:
        dataset (object): Config of a data set; nothing is found in what is none.
    """
    if not isinstance(dataset, Mapping):
        return
    wrapped = dataset.get('datasets', [dataset['dataset']] if 'dataset' in dataset else None)
    if wrapped is None:
        yield dataset
    for each in wrapped if isinstance(wrapped, (list, tuple)) else ():
        yield from leaf_datasets(each)


def annotation_path(entry: Mapping) -> str | None:
    """The annotation file of a data set or a metric, below its root; None where it names none.

    Args:
        entry (Mapping): Its config.
    """
    file = entry.get('ann_file')
    return os.path.join(str(entry.get('data_root') or ''), file) if isinstance(file, str) else None


def teacher_entries(teacher: object) -> list[tuple[str, Mapping]]:
    """The entries of ``model.teacher``, with the name of each; the only one has none.

    Args:
        teacher (object): A dict, or a list of them, of which each may have a ``name`` (default
            't0', 't1', ...).
    """
    if isinstance(teacher, Mapping):
        return [('', teacher)]
    entries = [entry if isinstance(entry, Mapping) else {} for entry in teacher or ()]
    return [(entry.get('name', f't{n}'), entry) for n, entry in enumerate(entries)]


def counts_iterations(config: Config) -> bool:
    """Whether a training counts iterations, and not epochs.

    Args:
        config (Config): Its config.
    """
    loop = config.get('train_cfg') or {}
    return type_name(loop) == 'IterBasedTrainLoop' or loop.get('by_epoch') is False


def read_detector_config(config: str | dict) -> ConfigDict:
    """Model config of a teacher; of a distilled detector, its student's.

    Args:
        config (str | dict): As :func:`read_config` takes it.

    Raises:
        UnreadableConfigError: There is no such file.
        ConfigError: No detector with a backbone is in it.
    """
    model = read_config(config, 'teacher').get('model')
    if isinstance(model, Mapping) and 'student' in model:
        model = model['student']
    if not isinstance(model, Mapping) or 'backbone' not in model:
        name = config if isinstance(config, str) else 'the teacher config'
        raise ConfigError(f'teacher: {name} holds no detector: model.backbone is missing.')
    return ConfigDict(copy.deepcopy(dict(model)))
