"""Starts a run from a config and command-line arguments, after checking both for mistakes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_distributed, is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.distributed import init_process_group

from ..data_check import DataReport
from ..distiller import RdimKDDistiller
from ..errors import ConfigError
from ..files.configs import hand_in_preprocessor
from ..preflight import Report, data_report, static_report
from ..preflight.classes import check_room_for_classes
from ..training.guard import (
    failures_explained,
    guard,
    latest_checkpoint,
    noted_checkpoint,
    raise_when_log_fails,
    seed_of,
)
from .checks import check_checkpoint, check_data, check_model, check_sections, check_work_dir
from .cli import apply_options
from .mistakes import errors_explained
from .optimization import check_optimizer, check_precision, check_schedulers
from .outputs import check_outputs
from .top_level import check_loops_whole

# What mmengine reads of the environment first, and what sets it; 'pytorch' is told by torch.
STARTERS = {
    'slurm': ('SLURM_PROCID', 'srun, e.g. tools/slurm_train.sh'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', "Open MPI's mpirun"),
}


def apply_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments of ``cli.add_common_arguments`` to a config, and check its sections."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    variable, starter = STARTERS.get(args.launcher, (None, None))
    if variable and variable not in os.environ:
        raise ConfigError(
            f'--launcher {args.launcher} is for processes started by {starter}, which sets '
            f'{variable}; on one device, leave --launcher out.'
        )
    apply_options(cfg, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    cfg.work_dir = str(cfg.work_dir)  # --cfg-options work_dir=2026 is a number
    hand_in_preprocessor(cfg)
    check_sections(cfg)
    check_loops_whole(cfg)
    check_outputs(cfg, args.cfg_options)


def check_before_run(cfg: Config, training: bool) -> tuple[nn.Module, DataReport]:
    """Find the mistakes that can be found before anything is written.

    Returns:
        The built model, and what may be wrong with the data.
    """
    check_work_dir(cfg.work_dir)
    data = check_data(cfg, ('train', 'val') if training else ('test',))
    model = check_without_data(cfg, training)
    if training:
        check_room_for_classes(cfg, model)
    return model, data


def check_without_data(cfg: Config, training: bool) -> nn.Module:
    """Find the mistakes that are not in the data, before anything is written; return the model."""
    if training:
        check_precision(cfg)
        check_optimizer(cfg)
        check_schedulers(cfg)
    model = check_model(cfg, training)
    check_checkpoint(cfg, model, training)
    return model


def prepare_launch(cfg: Config) -> None:
    """Make ``--launcher pytorch`` work without a GPU.

    mmengine (0.10.7, OneDL 0.10.12) sets a CUDA device when it starts a process group, and gives
    DDP a device id. On a CPU the group must exist before, and DDP must get no device id.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available() or is_distributed():
        return
    start_gloo()
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def start_gloo(**options) -> None:
    """Start a process group that needs no GPU, with options of ``init_process_group``."""
    try:
        init_process_group('gloo', **options)
    except ValueError as error:
        raise ConfigError(
            f'--launcher pytorch is for torchrun, e.g. tools/dist_train.sh CONFIG 2 ({error}).'
        ) from error


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, in one process or as one of several."""
    setup_cache_size_limit_of_dynamo()
    prepare_launch(cfg)
    with errors_explained(cfg), failures_explained(cfg.work_dir):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Run the training of a config, with the arguments of train.py."""
    apply_common_arguments(cfg, args)
    if args.amp:
        if not cfg.get('optim_wrapper'):
            raise ConfigError(f'--amp needs optim_wrapper=dict(optimizer=...) in {args.config}.')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}.'
            )
        cfg.auto_scale_lr.enable = True
    damaged = _resume(cfg, args.resume)
    report = report_before_training(cfg, *check_before_run(cfg, training=True))
    runner = build_runner(cfg)
    with errors_explained(cfg, runner), failures_explained(cfg.work_dir):
        run_training(runner, report, damaged)


def _resume(cfg: Config, checkpoint: str | None) -> list[str]:
    """Make a run resume if --resume is given; return the damaged checkpoints that were skipped.

    If 'auto', which ``resume=True`` in a config means too, finds no checkpoint, the run starts as
    the config says.
    """
    damaged = []
    if checkpoint is None and cfg.get('resume') and not cfg.get('load_from'):
        checkpoint = 'auto'
    if checkpoint == 'auto':
        checkpoint, damaged = latest_checkpoint(cfg.work_dir)
        # If the noted checkpoint cannot be resumed, the checks say why.
        checkpoint = checkpoint or noted_checkpoint(Path(cfg.work_dir))
    if checkpoint is not None:
        cfg.resume, cfg.load_from = True, str(checkpoint)
    return damaged


def run_training(runner: Runner, report: Report | None, damaged: Sequence[str]) -> None:
    """Run a training that has been checked, protected by a ``TrainingGuard``.

    ``report`` goes to the beginning of the log; ``damaged`` are the checkpoints that ``--resume``
    has skipped.
    """
    raise_when_log_fails(runner.logger)
    if report is not None:
        report.log(runner.logger)
    found = runner._load_from if runner._resume else None
    start = [runner._resume, runner._load_from, _seed_to_keep(runner)]
    broadcast_object_list(start)  # of rank 0, in case a shared disk lags behind on other ranks
    runner._resume, runner._load_from, seed = start
    if found and not runner._resume:
        raise ConfigError(
            f'--resume finds {found} here, but the process of rank 0 finds no checkpoint in '
            f'{runner.work_dir}; give all machines the same files, or start without --resume.'
        )
    if seed is not None:
        # mmengine (0.10.7, OneDL 0.10.12) does it only after building the training data loader.
        reseed = getattr(runner, 'set_randomness', None) or runner.strategy._set_randomness
        reseed(**{**runner._randomness_cfg, 'seed': seed})
    for newer in damaged:
        runner.logger.warning('%s is truncated or damaged; continuing from %s', newer, start[1])
    guard(runner)
    runner.train()


def _seed_to_keep(runner: Runner) -> int | None:
    """Return the seed that a resumed run takes from its checkpoint, since its config has none."""
    chosen = runner._randomness_cfg.get('seed') is not None
    if chosen or not (runner._resume and runner._load_from and is_main_process()):
        return None
    return seed_of(runner._load_from)


def report_before_training(cfg: Config, model: nn.Module, data: DataReport) -> Report | None:
    """Return the static preflight report; for a plain model, warnings on its data or None."""
    if isinstance(model, RdimKDDistiller):
        return static_report(cfg, model, data)
    report = data_report(cfg, data)
    return report if report.findings else None
