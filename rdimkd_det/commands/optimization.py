"""Checks a config's optimizer, its parameter schedulers and its precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mmdet.registry import OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.config import Config
from mmengine.device import get_device

from ..errors import ConfigError
from ..options import check_names, check_type, options_of, type_name


def check_optimizer(cfg: Config) -> None:
    """Check the optimizer's type, of which mmengine only says "None is not a callable object"."""
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer')
    if optimizer is not None:
        check_type(optimizer, 'optim_wrapper.optimizer', OPTIMIZERS)


def check_schedulers(cfg: Config) -> None:
    """Check the types and options of the parameter schedulers, which preflight never builds."""
    for where, entry in _schedulers('param_scheduler', cfg.get('param_scheduler')):
        kind = check_type(entry, where, PARAM_SCHEDULERS)
        known, takes_others = options_of(kind)
        if not takes_others:
            known += ['type', 'convert_to_iter_based', 'epoch_length']
            check_names(f'{where} ({kind.__name__})', entry, known)


def _schedulers(where: str, entry: object) -> Iterator[tuple[str, object]]:
    """Yield the schedulers of an entry: one, a list, or a dict of them for several optimizers."""
    if isinstance(entry, (list, tuple)):
        for number, each in enumerate(entry):
            yield f'{where}[{number}]', each
    elif isinstance(entry, Mapping) and 'type' not in entry:
        for name, each in entry.items():
            yield from _schedulers(f'{where}.{name}', each)
    elif entry is not None:
        yield where, entry


def check_precision(cfg: Config) -> None:
    """Check that mixed precision has a GPU, which mmengine only asserts."""
    wrapper = cfg.get('optim_wrapper') or {}
    if type_name(wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError(
            'optim_wrapper.type=AmpOptimWrapper (mixed precision, --amp) needs a GPU; on a CPU add '
            '--cfg-options optim_wrapper.type=OptimWrapper.'
        )
