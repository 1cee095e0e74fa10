"""Checks a config before anything is written, so that mistakes fail early and in one line."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.runner import find_latest_checkpoint
from torch import distributed, nn

from ..data_check import DataReport, look_at
from ..data_check.classes import check_class_names
from ..datasets.mixing import check_images, check_mixing
from ..distiller.distiller import RdimKDDistiller, distilled_student, sharding_message
from ..distiller.inheritance import matching_weights, weights_to_inherit
from ..errors import ConfigError, counted_from
from ..files.atomic import try_writing
from ..files.checkpoints import read_checkpoint_safely, weights_in
from ..files.configs import annotation_path, leaf_datasets, mappings, reads_local_files
from ..files.strict_loading import load_strictly
from ..host.registry import enter_scope
from ..options import check_options, explained, is_whole_number, type_name
from ..training.guard.saving import missing_to_resume
from .hook_options import check_hook_options, distill_hooks
from .top_level import check_dataloaders, check_top_level

SECTIONS = (
    'train_cfg',
    'optim_wrapper',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'auto_scale_lr',
    'default_hooks',
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
    """Build the model of a config once, and for training load its teacher's weights.

    The run itself does not use this model: the Runner seeds the random state before it builds its
    own, from the same config. Some detectors (DINO) write into theirs, so this one gets a copy.
    """
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ConfigError(f'config {cfg.filename} has no model with a type.')
    distilled = type_name(model) == 'RdimKDDistiller'
    enter_scope(cfg)
    if distilled:
        check_options('model', model, RdimKDDistiller)
        check_strategy(cfg)
    with explained(f'config {cfg.filename}: the model cannot be built'), _process_group(cfg):
        built = MODELS.build(deepcopy(model))
    if training:
        check_hooks(cfg, distilled)
        check_pretrained(built)
        if distilled:
            _check_teachers(cfg, built)
    return built


@contextmanager
def _process_group(cfg: Config) -> Iterator[None]:
    """Lend a distributed run's model the group that mmcv's SyncBatchNorm asks for when it is built.

    The Runner starts the run's own only afterwards.
    """
    if cfg.get('launcher', 'none') == 'none' or distributed.is_initialized():
        yield
        return
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _check_teachers(cfg: Config, model: nn.Module) -> None:
    distill = distilled_student(model).distill
    for part in distill.per_teacher:
        if part.has_weight:
            part.teacher.check(cfg)
    if distill.inherit and not cfg.get('resume'):
        weights = weights_to_inherit(distill.per_teacher[0].teacher.checkpoint)
        matching_weights(model, weights, distill.inherit)


def check_sections(cfg: Config) -> None:
    """Enter the scope of a config, and check its sections' types, keys and data loaders."""
    if not isinstance(cfg.get('default_scope'), (str, type(None))):
        raise ConfigError(f"default_scope must be a name like 'mmdet', got {cfg.default_scope!r}.")
    enter_scope(cfg)
    check_top_level(cfg)
    for name in SECTIONS:
        if not isinstance(cfg.get(name, {}), (Mapping, type(None))):
            raise ConfigError(f'{name} must be a dict, got {reprlib.repr(cfg[name])}.')
    check_dataloaders(cfg)
    if not isinstance(cfg.get('custom_hooks'), (list, tuple, type(None))):
        got = reprlib.repr(cfg.custom_hooks)
        raise ConfigError(f'custom_hooks must be a list of dicts, got {got}.')
    for name in ('max_epochs', 'max_iters'):
        length = (cfg.get('train_cfg') or {}).get(name, 1)
        whole = isinstance(length, float) and length.is_integer()  # 9e4: mmengine takes it
        if not is_whole_number(int(length) if whole else length, least=1):
            raise ConfigError(
                f'train_cfg.{name} must be a whole number of 1 or more, got {length!r}.'
            )


def check_hooks(cfg: Config, distilled: bool) -> None:
    """Check the options of all hooks, and that only a distilled model has a ``DistillHook``."""
    check_hook_options(cfg)
    hooks = distill_hooks(cfg)
    if distilled and not hooks:
        raise ConfigError(
            f"config {cfg.filename}: custom_hooks has no dict(type='DistillHook'), which fits the "
            f'projections and keeps the distillation state in checkpoints; add it to your list.'
        )
    if hooks and not distilled:
        raise ConfigError(
            f'config {cfg.filename}: custom_hooks has a DistillHook, but the model is a plain '
            f"{cfg.model['type']}; make it a dict(type='RdimKDDistiller', student=..., "
            f'teacher=..., losses=...), or drop the hook.'
        )


def check_pretrained(model: nn.Module) -> None:
    """Check the checkpoints that a model's ``init_cfg`` entries load."""
    unpacked_by = {
        path: type(module).init_weights
        for module in model.modules()
        for entry in mappings(getattr(module, 'init_cfg', None))
        if isinstance(path := entry.get('checkpoint'), str)
    }
    for path, init_weights in sorted(unpacked_by.items()):
        content = read_checkpoint_safely(path, who='init_cfg')
        if init_weights is BaseModule.init_weights:  # Swin's and others take more than a state_dict
            weights_in(content, path, who='init_cfg')


def check_data(cfg: Config, splits: Sequence[str], thorough: bool = False) -> DataReport:
    """Check that local annotation files exist, and look at what is in them.

    Args:
        cfg (Config): The config of the run.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'; only 'train' must have a dataset.
        thorough (bool): Look at all images, and put errors into the report, too. Defaults to False.

    Returns:
        DataReport: What was found; of several processes, only the first one looks.

    Raises:
        ConfigError: There is an error, and the look is not ``thorough``; or a file cannot be read.
    """
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if dataset is None and split != 'val':
            raise ConfigError(
                f'config {cfg.filename} has no {split} data; give it a {split}_dataloader with a '
                f'dataset.'
            )
        for leaf in leaf_datasets(dataset):
            _check_annotations(split, leaf)
            check_class_names(split, leaf)
            check_images(leaf)
    if 'train' in splits:
        check_mixing(cfg)
    if int(os.environ.get('RANK') or 0):
        return DataReport()
    report = look_at(cfg, splits, thorough)
    if not thorough:
        report.raise_errors()
    return report


def _check_annotations(split: str, dataset: Mapping) -> None:
    path = annotation_path(dataset)
    if path is None or not reads_local_files(dataset):
        return
    root = dataset.get('data_root') or ''
    if not isinstance(root, str):
        raise ConfigError(f'{split} data: data_root must be a path, got {root!r}.')
    if path and '://' not in path and not os.path.exists(path):
        raise ConfigError(
            f'{split} data: {path} does not exist. {_how_to_get(path)} Or set '
            f'{split}_dataloader.dataset.data_root to where your data are.{counted_from(path)}'
        )


def _how_to_get(path: str) -> str:
    if re.search(r'(^|/)data/digits/', path):
        return 'Make the digits with: python tools/make_digits.py.'
    if re.search(r'(train|val)2017\.json$|(^|/)data/coco/', path):
        return (
            'Get COCO 2017 (train2017, val2017, annotations) from https://cocodataset.org and '
            'unpack it into data/coco.'
        )
    return 'Put the data set there.'


def check_checkpoint(cfg: Config, model: nn.Module, training: bool) -> None:
    """Check the checkpoint that the run starts from, if there is one.

    mmengine (0.10.7, OneDL 0.10.12) loads the weights that fit and leaves the rest as initialised.
    A training run may start like that; a test or a resumed run needs the checkpoint's own detector.
    """
    path = cfg.get('load_from')
    if path is None and cfg.get('resume'):
        path = find_latest_checkpoint(cfg.work_dir)
    if path is None:
        return
    checkpoint = read_checkpoint_safely(path, who='model')
    weights = weights_in(checkpoint, path, who='model')
    if training and cfg.get('resume'):
        check_resumable(checkpoint, path, model)
    if not training or cfg.get('resume'):
        load_strictly(model, weights, path, f'config {cfg.filename}', who='model')


def check_resumable(checkpoint: Mapping, path: str, model: nn.Module) -> None:
    """Check that mmengine can resume from a checkpoint without running Python text in it.

    mmengine's Runner (0.10.7, OneDL 0.10.12) executes the text ``meta['config']``. Its own
    checkpoints do not have this entry; those of MMDetection 2 do.
    """
    start_anew = f'start from its weights: --cfg-options load_from={path}, without --resume.'
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and 'config' in meta:
        raise ConfigError(
            f"model: checkpoint {path} holds Python code (meta['config']) that mmengine would run "
            f'to resume; {start_anew}'
        )
    missing = missing_to_resume(checkpoint)
    if missing or not isinstance(meta, Mapping) or 'epoch' not in meta:
        raise ConfigError(
            f'model: checkpoint {path} cannot be resumed (it has no '
            f'{" and no ".join(missing) or "meta.epoch"}): it is of an exported or published '
            f'detector, or a best_*.pth; {start_anew}'
        )
    distilled, wanted = 'distill' in checkpoint, isinstance(model, RdimKDDistiller)
    if distilled != wanted and not _is_optimizer_of(model, checkpoint['optimizer']):
        kinds = ('plain', 'distilled')
        raise ConfigError(
            f'model: checkpoint {path} is of a {kinds[distilled]} training, and this config of a '
            f'{kinds[wanted]} one, whose optimizer has other parameters (the adapters); '
            f'{start_anew}'
        )


def _is_optimizer_of(model: nn.Module, state: object) -> bool:
    """Return whether an optimizer's state has as many parameters as a model."""
    groups = state.get('param_groups', ()) if isinstance(state, Mapping) else ()
    return sum(len(group['params']) for group in groups) == len(list(model.parameters()))


def check_work_dir(work_dir: str, what: str = 'work directory') -> None:
    """Check that the run can write to a directory, and leave nothing there."""
    try:
        try_writing(Path(work_dir))
    except OSError as error:
        raise ConfigError(
            f'{what} {work_dir} cannot be written: {error.strerror}; give a directory '
            f'that you may write to.'
        ) from error


def check_strategy(cfg: Config) -> None:
    """Check that the model's parameters are not sharded over the ranks."""
    for key in ('strategy', 'model_wrapper_cfg'):
        entry = cfg.get(key)
        kind = entry.get('type') if isinstance(entry, Mapping) else type(entry)
        name = str(getattr(kind, '__name__', kind)).split('.')[-1]
        if name in SHARDING:
            raise ConfigError(sharding_message(f'{key}.type={name}'))
