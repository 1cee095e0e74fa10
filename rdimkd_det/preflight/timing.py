"""Measures time and memory of a training iteration with and without distillation."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import cycle, islice
from statistics import median

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch.utils.data import DataLoader

from ..distiller import RdimKDDistiller
from ..progress import format_time, with_progress
from ..stopwatch import elapsed, peak_memory
from ..training.calibration import batch_size
from .measurements import training_input
from .report import Report, Table
from .static import live_modules

# Iterations to time with and without distillation each, after one that is not counted.
MIN_ROUNDS = 5
TIME_COLUMNS = ('an iteration', 'seconds', 'memory', 'whole run')


def measure_time(
    cfg: Config, model: RdimKDDistiller, batches: Sequence[dict], loader: DataLoader, report: Report
) -> None:
    """Report the time and memory that distillation costs; weights are left unchanged.

    The model has fitted projections, and is in train mode.
    """
    device = next(model.parameters()).device
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    for group in optimizer.param_groups:
        group['lr'] = 0.0
    seconds: dict[float, list[float]] = {0.0: [], 1.0: []}
    rounds = max(MIN_ROUNDS, len(batches)) + 1
    # In turns, so that a slowdown of the machine affects both.
    for batch in with_progress(list(islice(cycle(batches), rounds)), 'time'):
        for factor in seconds:
            model.distill.set_factor(factor)
            step = partial(model.train_step, deepcopy(batch), optimizer)
            seconds[factor].append(elapsed(step, device) / 1000)
    memory = {factor: _memory(model, factor, batches, optimizer) for factor in seconds}
    medians = {factor: median(taken[1:]) for factor, taken in seconds.items()}
    train = cfg.train_cfg
    iterations = train.get('max_iters') or train.get('max_epochs', 1) * len(loader)
    what_memory = '' if device.type == 'cuda' else '; memory of a step beside weights and optimizer'
    table = Table(
        f'Time of {iterations} iterations of {batch_size(loader)} images on this one device, '
        f'without data loading and validation{what_memory}',
        TIME_COLUMNS,
    )
    for name, factor in (('plain', 0.0), ('distilled', 1.0)):
        length = format_time(iterations * medians[factor])
        table.rows.append((name, f'{medians[factor]:.3g}', _size(memory[factor]), length))
    passes = _seconds_of_modules(model, batches)
    table.rows += [(name, f'{seconds:.3g}', '-', '-') for name, seconds in passes.items()]
    report.tables.append(table)
    report.figures['seconds'] = {'plain': medians[0.0], 'distilled': medians[1.0], **passes}
    report.figures['iterations'] = iterations


def _seconds_of_modules(model: RdimKDDistiller, batches: Sequence[dict]) -> dict[str, float]:
    """Return the time of a forward pass of each teacher that is a module and runs."""
    seconds = {}
    for part in live_modules(model):
        taken = []
        for batch in islice(cycle(batches), MIN_ROUNDS):
            data = training_input(model.data_preprocessor, batch)
            step = partial(part.teacher_feats, data['inputs'], data['data_samples'])
            taken.append(elapsed(step, data['inputs'].device) / 1000)
        seconds[f'forward pass of the teacher {part.name}'.strip()] = median(taken[1:])
    return seconds


def _memory(
    model: RdimKDDistiller, factor: float, batches: Sequence[dict], optimizer: OptimWrapper
) -> int:
    """Return the peak memory of a step in bytes; on a CPU, of what it adds to the memory held."""
    device = next(model.parameters()).device
    model.distill.set_factor(factor)
    held = torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0
    if held and not factor:  # a plain training has no teacher in memory
        held -= sum(part.teacher.num_bytes for part in model.distill.per_teacher)
    steps = [partial(model.train_step, deepcopy(batch), optimizer) for batch in batches]
    return held + max(peak_memory(step, device) for step in steps)


def _size(num_bytes: int) -> str:
    mebibytes = num_bytes / 2**20
    return f'{mebibytes:.0f} MiB' if mebibytes < 1000 else f'{mebibytes / 2**10:.2f} GiB'
