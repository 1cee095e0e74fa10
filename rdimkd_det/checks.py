"""Looks at a config before anything is written: what would fail later fails now, in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint
from torch import nn

from .checkpoints import load_checkpoint_safely
from .distiller import RdimKDDistiller, distilled_student, sharding_message
from .errors import ConfigError

LOSS_TYPES = ('RdimKDLoss',)
PROJECTION_TYPES = (
    'PCAProjection',
    'AutoencoderProjection',
    'RandomProjection',
    'IdentityProjection',
)
# mmengine's strategies and model wrappers that split parameters over the ranks.
SHARDING = (
    'FSDPStrategy',
    'DeepSpeedStrategy',
    'ColossalAIStrategy',
    'MMFullyShardedDataParallel',
    'MMDeepSpeedEngineWrapper',
    'ColossalAIModelWrapper',
    'CollosalAIModelWrapper',
)


def check_model(cfg: Config, training: bool) -> nn.Module:
    """Build the model of a config once, and for training its teacher with its weights.

    The run itself does not use it: the Runner seeds the random state before it builds the model.

    Args:
        cfg (Config): The run's config.
        training (bool): Whether the teacher will be needed.

    Returns:
        nn.Module: The model.

    Raises:
        ConfigError: The model cannot be built, or the teacher does not fit it or its checkpoint.
    """
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ConfigError(f'config {cfg.filename} has no model with a type.')
    distilled = model['type'] in ('RdimKDDistiller', RdimKDDistiller)
    if distilled:
        check_entries(model, cfg.filename)
        check_strategy(cfg)
    if training:
        check_hooks(cfg, distilled)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        built = MODELS.build(model)
    except ConfigError:
        raise
    except (
        ImportError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f'config {cfg.filename}: the model cannot be built: {type(error).__name__}: {error}'
        ) from error
    if training and distilled:
        for part in distilled_student(built).distill.parts:
            if part.wanted:
                part.teacher.build()
    return built


def check_entries(model: Mapping, filename: str) -> None:
    """Check what a distilled model's config must have.

    Args:
        model (Mapping): The config of a ``RdimKDDistiller``.
        filename (str): Its file, for the message.

    Raises:
        ConfigError: ``student``, ``teacher`` or ``losses`` is missing, or a loss or projection is
            unknown.
    """
    for name, kinds in (('student', Mapping), ('teacher', (Mapping, list)), ('losses', Mapping)):
        if not isinstance(model.get(name), kinds) or not model[name]:
            raise ConfigError(
                f'config {filename}: model.{name} is missing; a distilled model is '
                f"dict(type='RdimKDDistiller', student=..., teacher=..., losses=...)."
            )
    for tap, loss in model['losses'].items():
        where = f'model.losses.{tap}'
        check_type(loss, where, LOSS_TYPES)
        check_type(loss.get('projection'), f'{where}.projection', PROJECTION_TYPES)


def check_hooks(cfg: Config, distilled: bool) -> None:
    """Check that a distilled model has its hook, and a plain one has not.

    Raises:
        ConfigError: It is the other way round.
    """
    hooks = [hook for hook in cfg.get('custom_hooks') or () if isinstance(hook, Mapping)]
    has_hook = any(
        getattr(kind, '__name__', kind) == 'DistillHook'
        for kind in (hook.get('type') for hook in hooks)
    )
    if distilled and not has_hook:
        raise ConfigError(
            f"config {cfg.filename}: custom_hooks has no dict(type='DistillHook'), which fits the "
            f'projections and keeps the distillation state in checkpoints; add it to your list.'
        )
    if has_hook and not distilled:
        raise ConfigError(
            f'config {cfg.filename}: custom_hooks has a DistillHook, but the model is a plain '
            f"{cfg.model['type']}; make it a dict(type='RdimKDDistiller', student=..., "
            f'teacher=..., losses=...), or drop the hook.'
        )


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


def check_precision(cfg: Config) -> None:
    """Check that mixed precision has a device: mmengine asserts one.

    Raises:
        ConfigError: There is none.
    """
    kind = (cfg.get('optim_wrapper') or {}).get('type')
    if getattr(kind, '__name__', kind) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError(
            'optim_wrapper.type=AmpOptimWrapper (mixed precision, --amp) needs a GPU; on a CPU add '
            '--cfg-options optim_wrapper.type=OptimWrapper.'
        )


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


def check_checkpoint(cfg: Config) -> None:
    """Check that the checkpoint that the run starts from, if any, holds weights and nothing else.

    Args:
        cfg (Config): The run's config, with its ``load_from`` and ``resume``.

    Raises:
        ConfigError: It is missing, damaged, or could run code.
    """
    path = cfg.get('load_from')
    if path is None and cfg.get('resume'):
        path = find_latest_checkpoint(cfg.work_dir)
    # Names like torchvision://resnet50 are addresses that only mmengine can resolve.
    if path is not None and ('://' not in path or path.startswith(('http://', 'https://'))):
        load_checkpoint_safely(path, who='model')


def check_work_dir(work_dir: str) -> None:
    """Check that the run may write, without writing.

    Raises:
        ConfigError: The directory, or the nearest parent that exists, is not writable.
    """
    path = Path(work_dir).absolute()
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f'work directory {work_dir} cannot be written: {existing} is not ours.')


def check_strategy(cfg: Config) -> None:
    """Check that every rank will hold the model's parameters whole.

    Raises:
        ConfigError: A strategy of the ``FlexibleRunner``, or a model wrapper, shards them.
    """
    for key in ('strategy', 'model_wrapper_cfg'):
        entry = cfg.get(key)
        kind = entry.get('type') if isinstance(entry, Mapping) else type(entry)
        name = str(getattr(kind, '__name__', kind)).split('.')[-1]
        if name in SHARDING:
            raise ConfigError(sharding_message(f'{key}.type={name}'))
