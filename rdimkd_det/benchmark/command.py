"""What the command lines that measure a distilled config have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger

from ..commands import cli
from ..commands.cfg_options import OptionsAction
from ..commands.mistakes import errors_explained
from ..errors import ConfigError
from ..files.atomic import write_json
from ..stopwatch import describe_device
from .preparation import prepare
from .subject import Subject


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all of them take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'),
                        help='input size of both networks. Defaults to 800 1344')  # fmt: skip
    parser.add_argument('--batch', type=int, default=1, help='images a step. Defaults to 1')
    parser.add_argument('--rounds', type=int, default=20, help='timed rounds. Defaults to 20')
    parser.add_argument('--random-weights', action='store_true',
                        help='use random teacher weights, without its checkpoint')  # fmt: skip
    parser.add_argument(
        '--json', type=Path, metavar='F', help='also write the numbers to this file'
    )
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={},
                        help='override settings of the config')  # fmt: skip
    return parser


def command_line() -> str:
    """Return the command line of this process, also of one that was started by ``python -m``."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    program = f'-m {spec.name}' if spec else sys.argv[0]
    return ' '.join(['python', program, *sys.argv[1:]])


def run(
    args: argparse.Namespace, measure: Callable[[Subject], dict], show: Callable[[dict], None]
) -> None:
    """Measure a config, and show and write the report: the numbers, and how they were measured."""
    if min(*args.shape, args.batch, args.rounds) < 1:
        raise ConfigError('--shape, --batch and --rounds must be 1 or more.')
    if args.json:
        cli.check_out_file(args.json, '--json')
    MMLogger.get_instance('benchmark').setLevel('ERROR')  # else a line per optimizer parameter
    cfg = cli.read_config_file(args.config)
    cli.apply_options(cfg, args.cfg_options)
    device = torch.device(get_device())
    torch.backends.cudnn.benchmark = (cfg.get('env_cfg') or {}).get('cudnn_benchmark', False)
    with tempfile.TemporaryDirectory() as folder:
        prepare(cfg, Path(folder, 'random.pth') if args.random_weights else None)
        with errors_explained(cfg):
            torch.manual_seed(0)
            subject = Subject(cfg, args.batch, tuple(args.shape), device)
            report = {
                'command': command_line(),
                'date': date.today().isoformat(),
                'machine': describe_device(device),
                'shape': list(args.shape),
                'batch': args.batch,
                'weights': subject.num_bytes(),
                **measure(subject),
            }
    show(report)
    if args.json:
        write_json(args.json, report)
