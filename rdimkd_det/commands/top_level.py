"""Checks of the top level of a config: unknown keys, and keys that belong together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches

from mmdet.registry import LOOPS
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from ..errors import ConfigError
from ..names import check_options, check_type, registered

# What mmengine's Runner, mmdet's tools and ours look up besides the Runner's own parameters.
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
# How near a name must be to a key to be no variable of the user's own: one or two letters.
NEAR = 0.85

# What mmengine wants all or none of, and would print as a whole where one is missing.
TOGETHER = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
)


def check_top_level(cfg: Config) -> None:
    """Check that no key of a config is almost one that is read, nor an option of its loops.

    Raises:
        ConfigError: One is misspelled.
    """
    for name in cfg:
        meant = meant_key(name)
        if meant is not None:
            raise ConfigError(
                f"config {cfg.filename}: nothing reads '{name}'; did you mean '{meant}'? If it is "
                f'a variable of yours, rename it.'
            )
    for name in ('train_cfg', 'val_cfg', 'test_cfg'):
        entry = cfg.get(name)
        if isinstance(entry, Mapping) and 'type' in entry:
            kind = check_type(entry, name, LOOPS, registered(LOOPS))
            check_options(name, entry, kind, ('type', 'by_epoch'))


def check_loops_whole(cfg: Config) -> None:
    """Check that training, validation and test have all parts that a Runner wants, or none.

    Raises:
        ConfigError: A part is missing.
    """
    for parts in TOGETHER:
        missing = [name for name in parts if cfg.get(name) is None]
        if 0 < len(missing) < len(parts):
            raise ConfigError(
                f'config {cfg.filename}: {", ".join(parts)} belong together, and it has no '
                f'{" and no ".join(missing)}.'
            )


def meant_key(name: str) -> str | None:
    """The key that a top-level name of a config was probably meant to be; None for any other."""
    if name in READ:
        return None
    nearest = next(iter(get_close_matches(name, READ, n=1, cutoff=NEAR)), None)
    if nearest is None:
        return None
    # `val_evaluator_full`, `my_model`, `train_cfg2` are meant as they are.
    longer = name.startswith(f'{nearest}_') or name.endswith(f'_{nearest}')
    return None if longer or name.rstrip('0123456789') == nearest else nearest
