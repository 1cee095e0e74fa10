"""Checks hook options that would otherwise fail late: at a checkpoint, or after many epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmcv.transforms import Compose
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..errors import ConfigError
from ..hooks import DistillHook
from ..options import check_options, check_type, explained, registered


def check_hook_options(cfg: Config) -> None:
    """Check the types and options of all hooks of a config."""
    for where, entry in _hooks(cfg):
        kind = check_type(entry, where, HOOKS, hook_types())
        saves = isinstance(kind, type) and issubclass(kind, CheckpointHook)
        # CheckpointHook passes options that it does not know on to this, at the first checkpoint.
        passed_to = Runner.save_checkpoint if saves else None
        check_options(where, entry, kind, ('type', 'priority'), passed_to)
        if saves:
            _check_checkpoint_hook(where, entry)
        if 'switch_pipeline' in entry:
            with explained(f'{where}.switch_pipeline cannot be built'):
                Compose(entry['switch_pipeline'])


def hook_types() -> list[str]:
    """Return the names of all hooks; the one that a distilled model needs comes first."""
    return ['DistillHook', *registered(HOOKS)]


def distill_hooks(cfg: Config) -> list[DistillHook]:
    """Build the ``DistillHook`` entries of a config."""
    kinds = [
        (hook, check_type(hook, 'custom_hooks', HOOKS, hook_types()))
        for hook in cfg.get('custom_hooks') or ()
    ]
    return [
        HOOKS.build({key: value for key, value in hook.items() if key != 'priority'})
        for hook, kind in kinds
        if isinstance(kind, type) and issubclass(kind, DistillHook)
    ]


def _hooks(cfg: Config) -> Iterator[tuple[str, Mapping]]:
    for name, entry in (cfg.get('default_hooks') or {}).items():
        if entry is not None:  # None switches off one of mmengine's own hooks
            yield f'default_hooks.{name}', entry
    for entry in cfg.get('custom_hooks') or ():
        yield 'custom_hooks', entry


def _check_checkpoint_hook(where: str, entry: Mapping) -> None:
    interval, name = entry.get('interval', -1), entry.get('filename_tmpl')
    if isinstance(interval, bool) or not isinstance(interval, int):
        raise ConfigError(f'{where}.interval must be a whole number, got {interval!r}.')
    try:
        numbered = name is None or name.format(1) != name.format(2)
    except (AttributeError, LookupError, ValueError):  # not a string, or other placeholders
        numbered = False
    if not numbered:
        raise ConfigError(
            f"{where}.filename_tmpl must hold one {{}} for the number, e.g. 'epoch_{{}}.pth'; "
            f'got {name!r}.'
        )
