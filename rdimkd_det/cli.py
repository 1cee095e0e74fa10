"""What the command lines in tools/ share: arguments, launch, and one line for a user's mistake."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.dist import broadcast_object_list, is_distributed
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn
from torch.distributed import init_process_group

from .checkpoints import checkpoints_kept
from .checks import (
    check_checkpoint,
    check_data,
    check_model,
    check_optimizer,
    check_precision,
    check_sections,
    check_work_dir,
)
from .data_files import read_data_files_safely
from .distiller import RdimKDDistiller
from .errors import ConfigError, TrainingInterruptedError, TrainingStoppedError
from .guard import guard, last_good, latest_checkpoint
from .mistakes import as_config_error, told_in_one_line
from .outputs import check_outputs
from .preflight import Report, static_report


def run(main: Callable[[], None]) -> None:
    """Run a command line: a user's mistake ends it with one line and exit status 2.

    Args:
        main (Callable): The command. A ``ConfigError`` from it is a user's mistake.
    """
    # Whatever is unpickled in this process is data: mmengine of OneDL (0.10.12) would fall back
    # to unsafe loading of a checkpoint that holds anything else.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    read_data_files_safely()
    # mmengine 0.10.7 imports pkg_resources, once per `mmdet::` base, to say the same each time.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    # OneDL's mmdet 3.5.1 warns of an optional package at each import.
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'mmdet\.')
    try:
        main()
    except ConfigError as error:
        exit_with(' '.join(str(error).split()))
    except (FloatingPointError, TrainingStoppedError) as error:
        exit_with(_last_line(error), status=1)
    except TrainingInterruptedError as error:
        exit_with(str(error), status=error.status)
    except KeyboardInterrupt:
        exit_with('interrupted.', status=130)


def _last_line(error: Exception) -> str:
    # An error in a data loader's worker comes with its traceback in the message.
    return (
        str(error)
        .strip()
        .split('\n')[-1]
        .removeprefix(f'{TrainingStoppedError.__module__}.{TrainingStoppedError.__name__}: ')
    )


def exit_with(message: str, status: int = 2) -> None:
    """Print one line to stderr and end the process."""
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    sys.exit(status)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what MMDetection's own train.py and test.py have in common."""
    parser.add_argument('--work-dir', help='directory for logs and checkpoints')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of the config, e.g. model.losses.neck.loss_weight=2 '
        'optim_wrapper.optimizer.lr=0.01; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher; pytorch also runs several processes on a CPU',
    )
    # torchrun sets LOCAL_RANK; older launchers pass it as an option.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what MMDetection's own train.py has beyond that."""
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size, as auto_scale_lr in the config says',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without one, from the latest in the work directory',
    )


def number(text: str) -> int | float:
    """An int where the text is one, else a float; for argparse."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def weight(text: str) -> int | float | str:
    """A loss weight: a number or 'auto'; for argparse."""
    return text if text == 'auto' else number(text)


def read_config_file(path: str) -> Config:
    """Read the config file of a command line.

    Raises:
        ConfigError: The file is missing or cannot be read as a config.
    """
    if not Path(path).is_file():
        raise ConfigError(f'config {path} not found.')
    try:
        return Config.fromfile(path)
    except Exception as error:  # a config is Python: anything can go wrong in it
        message = f'{type(error).__name__}: {error}'
        raise ConfigError(f'config {path} cannot be read: {message}') from error


def apply_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Apply to a config what :func:`add_common_arguments` added.

    Args:
        cfg (Config): Gets ``launcher`` and ``work_dir``, and the --cfg-options.
        args (argparse.Namespace): Parsed arguments, with ``config``.

    Raises:
        ConfigError: An override does not fit the config.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(f'--cfg-options: {error}') from error
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    check_sections(cfg)
    check_outputs(cfg, args.cfg_options)


def check_before_run(cfg: Config, training: bool) -> nn.Module:
    """Find the mistakes that can be found before anything is written.

    Args:
        cfg (Config): The run's config.
        training (bool): Whether it will be trained, else tested.

    Returns:
        nn.Module: Its model, built for the check.

    Raises:
        ConfigError: What is wrong, and what to do.
    """
    check_work_dir(cfg.work_dir)
    check_data(cfg, ('train', 'val') if training else ('test',))
    if training:
        check_precision(cfg)
        check_optimizer(cfg)
    model = check_model(cfg, training)
    check_checkpoint(cfg)
    return model


def prepare_launch(cfg: Config) -> None:
    """Let ``--launcher pytorch`` work without a GPU.

    mmengine (0.10.7, OneDL 0.10.12) sets a CUDA device when it starts a process group and gives
    DDP a device id; on a CPU the group must be there already and DDP must get none.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available() or is_distributed():
        return
    try:
        init_process_group('gloo')
    except ValueError as error:
        raise ConfigError(
            f'--launcher pytorch is for torchrun, e.g. tools/dist_train.sh CONFIG 2 ({error}).'
        ) from error
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, on one process or as one of several.

    Raises:
        ConfigError: A hook, logger or the like cannot be built.
    """
    setup_cache_size_limit_of_dynamo()
    prepare_launch(cfg)
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except Exception as error:  # every class has its own way to refuse its arguments
        raise as_config_error(error) from error


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Train what a config says, as the arguments of train.py ask.

    Args:
        cfg (Config): The run's config.
        args (argparse.Namespace): With what the two ``add_..._arguments`` add.

    Raises:
        ConfigError: A mistake that can be found before anything is written.
    """
    apply_common_arguments(cfg, args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ConfigError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}.'
            )
        cfg.auto_scale_lr.enable = True
    damaged = []
    if args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
        if args.resume == 'auto':
            cfg.load_from, damaged = latest_checkpoint(cfg.work_dir)
    with checkpoints_kept():
        report = report_before_training(cfg, check_before_run(cfg, training=True))
    runner = build_runner(cfg)
    if report is not None:
        report.log(runner.logger)
    resumed = [runner._load_from]
    broadcast_object_list(resumed)  # the first rank's choice, should a disk be late for another
    runner._load_from = resumed[0]
    for newer in damaged:
        runner.logger.warning('%s is cut off or damaged; going on from %s', newer, resumed[0])
    guard(runner)
    with told_in_one_line(runner), killed_workers_explained(cfg.work_dir):
        runner.train()


@contextmanager
def killed_workers_explained(work_dir: str) -> Iterator[None]:
    """Say what a data loader that lost a worker process does not.

    Args:
        work_dir (str): Of the training, for its last checkpoint.

    Raises:
        TrainingStoppedError: In place of PyTorch's exception.
    """
    try:
        yield
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error) or isinstance(error, TrainingStoppedError):
            raise
        raise TrainingStoppedError(
            f'{_last_line(error).rstrip(".")}: it was killed or crashed, most often for want of '
            f'memory; lower train_dataloader.num_workers or batch_size. {last_good(work_dir)} '
            f'Go on with --resume.'
        ) from error


def report_before_training(cfg: Config, model: nn.Module) -> Report | None:
    """The static part of preflight; None for a plain model."""
    return static_report(cfg, model) if isinstance(model, RdimKDDistiller) else None
