"""Shared by the command lines in tools/: arguments, and one-line messages for user errors."""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from mmengine.config import Config
from torch import distributed

from ..errors import (
    ConfigError,
    TrainingInterruptedError,
    TrainingStoppedError,
    last_line,
    named_file,
)
from ..files.atomic import try_writing
from ..files.configs import open_config
from ..files.untrusted import read_data_files_safely
from .cfg_options import OptionsAction


def run(main: Callable[[], None]) -> None:
    """Run a command line: a user error ends it with one line and exit status 2."""
    # Only data is unpickled in this process: OneDL's mmengine (0.10.12) would fall back to unsafe
    # loading of a checkpoint that holds anything else.
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch refuses both
    read_data_files_safely()
    # mmengine 0.10.7 imports pkg_resources for each `mmdet::` base, with the same warning.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
    # OneDL's mmdet 3.5.1 warns of an optional package at each import.
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    warnings.filterwarnings('ignore', category=FutureWarning, module=r'mmdet\.')
    # mmdet does not pass `indexing` to torch.meshgrid, and relies on the default.
    warnings.filterwarnings('ignore', message='torch.meshgrid: in an upcoming release')
    interrupted = None
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # what Python itself would find too late for the handlers below
    except BrokenPipeError:
        if not _nobody_reads():  # another pipe, e.g. to the process of a logging service
            raise
        # Without a word, as other commands end: who read the output, e.g. ``head``, has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except ConfigError as error:
        exit_with(' '.join(str(error).split()))
    except (FloatingPointError, TrainingStoppedError) as error:
        exit_with(last_line(error), status=1)
    except TrainingInterruptedError as error:
        interrupted = str(error), error.status
    except OSError as error:
        if named_file(error) is None:
            raise
        exit_with(named_file(error))
    except KeyboardInterrupt:
        exit_with('interrupted.', status=130)
    leave_process_group()  # only here, where all processes end together
    if interrupted is not None:
        exit_with(*interrupted)


def _nobody_reads() -> bool:
    """Return whether the output is a pipe whose other end is closed."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # 0: errors only
    return bool(output.poll(0))


def leave_process_group() -> None:
    """Destroy the process group with its threads, if there is one.

    A thread of gloo that releases a tensor while Python shuts down aborts the process (seen with
    torch 2.13), so that a successful run would end as a failed one.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # the wrapped model also holds the group, and is part of a reference cycle


def exit_with(message: str, status: int = 2) -> None:
    """Print one line to stderr and end the process."""
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    sys.exit(status)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that MMDetection's train.py and test.py have in common."""
    parser.add_argument('--work-dir', help='directory for logs and checkpoints')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
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
    """Add the arguments that only MMDetection's train.py has."""
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
        help='continue from this checkpoint; without a name, from the latest in the work directory',
    )


def check_out_file(path: Path, option: str, folder_is_made: bool = False) -> None:
    """Check that an output file can be written, before the work that produces it.

    The directory must exist, unless ``folder_is_made`` by the tool.
    """
    if path.is_dir():
        raise ConfigError(f'{option} {path} is a directory; give the name of a file.')
    # /dev/stdout is a file where the output goes to one; /dev/shm is a folder in memory.
    of_device = path.absolute().parent in (Path('/dev'), Path('/dev/fd'))
    if of_device or (path.exists() and not path.is_file()):
        raise ConfigError(
            f'{option} {path} is a device or pipe, in whose place a file would be put; give the '
            f'name of a file.'
        )
    try:
        folder = path.absolute().parent
        try_writing(folder if folder_is_made else folder.resolve(strict=True))
    except OSError as error:
        raise ConfigError(
            f'{option} {path} cannot be written: {error.strerror}; give a file in an existing '
            f'directory that you may write to.'
        ) from error


def number(text: str) -> int | float:
    """Convert text to an int if possible, otherwise to a float; for argparse."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def weight(text: str) -> int | float | str:
    """Convert text to a loss weight, a number or 'auto'; for argparse."""
    return text if text == 'auto' else number(text)


def apply_options(cfg: Config, options: Mapping) -> None:
    """Apply the --cfg-options of a command line to a config, in place."""
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise ConfigError(f'--cfg-options: {error}') from error


def read_config_file(path: str) -> Config:
    """Read the config file of a command line, a path or ``'mmdet::...'``."""
    if '::' not in path and not Path(path).is_file():
        raise ConfigError(f'config {path} not found.')
    try:
        return open_config(path)
    except ConfigError:
        raise
    except Exception as error:  # a config is Python: anything can go wrong in it
        message = f'{type(error).__name__}: {error}{_remedy(error)}'
        raise ConfigError(f'config {path} cannot be read: {message}') from error


def _remedy(error: Exception) -> str:
    """Return the remedy for two base configs that both have hooks, usually a student's and ours."""
    text = str(error)
    if 'Duplicate key is not allowed among bases' not in text or 'custom_hooks' not in text:
        return ''
    return (
        "; in place of the base distill.py write custom_imports=dict(imports=['rdimkd_det'], "
        "allow_failed_imports=False) and custom_hooks=[*_base_.custom_hooks, dict(type='"
        "DistillHook')], as docs/config.md shows."
    )
