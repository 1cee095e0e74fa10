"""Checks a config's top level: misspelled keys, options of sections, and those that are missing."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from difflib import get_close_matches

from mmdet.registry import LOOPS
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..options import SCOPE, check_options, check_type, explained

# Keys that mmengine's Runner, mmdet's tools and ours read besides the Runner's own parameters.
LOOKED_UP = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
}
READ = LOOKED_UP.union(
    *(inspect.signature(runner).parameters for runner in (Runner, FlexibleRunner))
) - {'cfg'}
# Similarity above which a name is a misspelled key and not the user's own variable: one or two
# letters differ.
NEAR = 0.85

# mmengine requires all or none of a group, and would print whole sections where one is missing.
TOGETHER = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)

# What mmengine builds or takes for itself before it hands a loader's options to PyTorch.
BUILT = {
    SCOPE,
    'batch_sampler',
    'collate_fn',
    'dataset',
    'num_batch_per_epoch',
    'sampler',
    'worker_init_fn',
}


def check_top_level(cfg: Config) -> None:
    """Check the spelling of a config's top-level keys, and the types and options of its loops."""
    for name in cfg:
        meant = meant_key(name)
        if meant is not None:
            raise ConfigError(
                f"config {cfg.filename}: unknown key '{name}'; did you mean '{meant}'? If it is "
                f'your own variable, rename it.'
            )
    for name in ('train_cfg', 'val_cfg', 'test_cfg'):
        entry = cfg.get(name)
        if isinstance(entry, Mapping) and 'type' in entry:
            kind = check_type(entry, name, LOOPS)
            check_options(name, entry, kind, ('type', 'by_epoch'))


def check_dataloaders(cfg: Config) -> None:
    """Check the options of data loaders, by PyTorch's own checks of a loader of nothing."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options = {key: it for key, it in (cfg.get(name) or {}).items() if key not in BUILT}
        with explained(name), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the run's own loader repeats them
            DataLoader([None], **options)


def check_loops_whole(cfg: Config) -> None:
    """Check that training, validation and test have all sections that a Runner needs, or none."""
    for parts in TOGETHER:
        missing = [name for name in parts if cfg.get(name) is None]
        if 0 < len(missing) < len(parts):
            raise ConfigError(
                f'config {cfg.filename}: {", ".join(parts)} are needed together; it has no '
                f'{" and no ".join(missing)}.'
            )


def meant_key(name: str) -> str | None:
    """Return the key that a top-level name of a config probably misspells; None for any other."""
    if name in READ:
        return None
    nearest = next(iter(get_close_matches(name, READ, n=1, cutoff=NEAR)), None)
    if nearest is None:
        return None
    # `val_evaluator_full`, `my_model` and `train_cfg2` are the user's own variables.
    longer = name.startswith(f'{nearest}_') or name.endswith(f'_{nearest}')
    return None if longer or name.rstrip('0123456789') == nearest else nearest
