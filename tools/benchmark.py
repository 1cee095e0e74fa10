"""Measure the cost of distillation: time, memory and operations of a plain and a distilled step."""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from rivals import L2, MGD, PKD, L2WithAdapter

from rdimkd_det import ConfigError
from rdimkd_det.benchmark.losses import LAYOUTS, VARIANTS, loss_pieces, rdimkd_variants
from rdimkd_det.benchmark.operations import count_operations
from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.benchmark.steps import compare_with_floor, step_pieces
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.benchmark.tables import print_report
from rdimkd_det.commands import cli
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.commands.options import OptionsAction
from rdimkd_det.files.whole import write_text
from rdimkd_det.stopwatch import describe_device, measure

RIVALS = {'l2': L2, 'l2-adapter': L2WithAdapter, 'pkd': PKD, 'mgd': MGD}
LOSSES = (*RIVALS, *VARIANTS)
PARTS = ('steps', 'losses', 'operations')


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure what distillation costs.')
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'),
                        help='input size of both networks. Defaults to 800 1344')  # fmt: skip
    parser.add_argument('--batch', type=int, default=1, help='images a step. Defaults to 1')
    parser.add_argument('--rounds', type=int, default=20, help='timed rounds. Defaults to 20')
    parser.add_argument('--only', choices=PARTS, help='one part of the measurement')
    parser.add_argument('--compare', nargs='+', default=LOSSES, choices=LOSSES, metavar='LOSS',
                        help=f'losses to time alone, of: {", ".join(LOSSES)}')  # fmt: skip
    parser.add_argument('--random-weights', action='store_true',
                        help='use random teacher weights, without its checkpoint')  # fmt: skip
    parser.add_argument(
        '--json', type=Path, metavar='F', help='also write the numbers to this file'
    )
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={},
                        help='override settings of the config')  # fmt: skip
    args = parser.parse_args()
    if min(*args.shape, args.batch, args.rounds) < 1:
        raise ConfigError('--shape, --batch and --rounds must be 1 or more.')
    if args.json:
        cli.check_out_file(args.json, '--json')
    MMLogger.get_instance('benchmark').setLevel('ERROR')  # else a line per optimizer parameter
    cfg = cli.read_config_file(args.config)
    cli.apply_options(cfg, args.cfg_options)
    with tempfile.TemporaryDirectory() as folder:
        prepare(cfg, Path(folder, 'random.pth') if args.random_weights else None)
        with errors_explained(cfg):
            report = run(cfg, args)
    print_report(report)
    if args.json:
        write_text(args.json, json.dumps(report, indent=2) + '\n')


def run(cfg: Config, args: argparse.Namespace) -> dict:
    """Measure the requested parts."""
    device = torch.device(get_device())
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    torch.manual_seed(0)
    subject = Subject(cfg, args.batch, tuple(args.shape), device)
    report = {
        'command': f'python {" ".join(sys.argv)}',
        'date': date.today().isoformat(),
        'machine': describe_device(device),
        'shape': list(args.shape),
        'batch': args.batch,
        'weights': subject.num_bytes(),
    }
    wanted = [args.only] if args.only else PARTS
    if 'steps' in wanted or 'losses' in wanted:
        report['rounds'] = args.rounds
    if 'steps' in wanted:
        report.update(compare_with_floor(measure(step_pieces(subject), args.rounds, device)))
    if 'losses' in wanted:
        report.update(time_losses(subject, args))
    if 'operations' in wanted:
        report['operations'] = count_operations(subject)
    return report


def time_losses(subject: Subject, args: argparse.Namespace) -> dict:
    """Measure the losses alone, on each memory layout of the teacher's maps."""
    _, loss = subject.model.distill.items()[0]
    dim = loss.projections[0].basis.shape[1]
    builders = {**RIVALS, **rdimkd_variants(dim)}
    compared = {name: builders[name] for name in args.compare}
    pieces = {
        (layout, name): piece
        for layout in LAYOUTS
        for name, piece in loss_pieces(subject, compared, layout).items()
    }
    costs = measure(pieces, args.rounds, subject.device)
    losses = {
        layout: {name: asdict(costs[layout, name]) for name in compared} for layout in LAYOUTS
    }
    return {'dim': dim, 'losses': losses}


if __name__ == '__main__':
    cli.run(main)
