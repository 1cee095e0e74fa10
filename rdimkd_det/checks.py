"""Looks at a config before anything is built: what would fail later fails now, in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config

from .checkpoints import load_checkpoint_safely
from .errors import ConfigError

LOSS_TYPES = ('RdimKDLoss',)
PROJECTION_TYPES = (
    'PCAProjection',
    'AutoencoderProjection',
    'RandomProjection',
    'IdentityProjection',
)


def check_distilled(cfg: Config, training: bool) -> None:
    """Check the distilled model of a config; a plain one passes.

    Args:
        cfg (Config): The run's config.
        training (bool): Whether the teacher will be needed.

    Raises:
        ConfigError: ``student``, ``teacher`` or ``losses`` is missing, a loss or projection is
            unknown, or the teacher's checkpoint is not there.
    """
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ConfigError(f'config {cfg.filename} has no model with a type.')
    if model['type'] != 'RdimKDDistiller':
        return
    for name in ('student', 'teacher', 'losses'):
        if not isinstance(model.get(name), Mapping) or not model[name]:
            raise ConfigError(
                f'config {cfg.filename}: model.{name} is missing; a distilled model is '
                f"dict(type='RdimKDDistiller', student=..., teacher=..., losses=...)."
            )
    for tap, loss in model['losses'].items():
        where = f'model.losses.{tap}'
        check_type(loss, where, LOSS_TYPES)
        check_type(loss.get('projection'), f'{where}.projection', PROJECTION_TYPES)
    checkpoint = model['teacher'].get('checkpoint')
    if training and isinstance(checkpoint, str) and '://' not in checkpoint:
        if not Path(checkpoint).is_file():
            raise ConfigError(f'teacher: checkpoint {checkpoint} does not exist.')


def check_type(entry: object, where: str, known: Sequence[str]) -> None:
    """Check that a config entry names a registered type.

    Args:
        entry (object): The entry, which should be a dict with a 'type'.
        where (str): Its place in the config.
        known (Sequence[str]): This package's own types, to suggest.

    Raises:
        ConfigError: It does not; suggests the nearest name.
    """
    name = entry.get('type') if isinstance(entry, Mapping) else None
    if name is None:
        raise ConfigError(f"{where} must be a dict with a type, e.g. '{known[0]}'; got {entry!r}.")
    if isinstance(name, str) and MODELS.get(name) is None:
        nearest = get_close_matches(name, known, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else f'; there are {", ".join(known)}.'
        raise ConfigError(f"{where}: unknown type '{name}'{hint}")


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that annotation files on this machine's disk are there.

    Args:
        cfg (Config): The run's config.
        splits (Sequence[str]): Of 'train', 'val' and 'test'.

    Raises:
        ConfigError: One is missing; says how to get the data.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        while isinstance(dataset, Mapping) and 'dataset' in dataset:
            dataset = dataset['dataset']
        if not isinstance(dataset, Mapping) or not isinstance(dataset.get('ann_file'), str):
            continue
        path = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
        if path and '://' not in path and not os.path.exists(path):
            raise ConfigError(
                f'{split} data: {path} does not exist. {_how_to_get(path)} Or set '
                f'{split}_dataloader.dataset.data_root to where your data are.'
            )


def _how_to_get(path: str) -> str:
    if 'digits' in path:
        return 'Make the digits with: python tools/make_digits.py.'
    if 'coco' in path.lower():
        return (
            'Get COCO 2017 (train2017, val2017, annotations) from https://cocodataset.org and '
            'unpack it into data/coco.'
        )
    return 'Put the data set there.'


def check_checkpoint(path: str) -> None:
    """Check that a student's checkpoint can be read and holds weights.

    Raises:
        ConfigError: It cannot.
    """
    load_checkpoint_safely(path, who='model')


def check_work_dir(work_dir: str) -> None:
    """Check that the run may write, without writing.

    Raises:
        ConfigError: The directory, or the nearest parent that exists, is not writable.
    """
    path = Path(work_dir).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f'work directory {work_dir} cannot be written: {existing} is not ours.')
