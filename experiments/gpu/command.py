"""Check that everything works on this machine's GPU, and measure what distillation costs there.

Each check runs in a process of its own and leaves its results in --out, as JSON.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rdimkd_det.errors import ConfigError
from rdimkd_det.files.atomic import try_writing

from .running import CHECKS, run_checks
from .task import Task


def main() -> None:
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running check too
    head = {'command': f'python {" ".join(sys.argv)}', 'date': date.today().isoformat()}
    checks = {name: module for name, module in CHECKS.items() if name in args.only}
    with tempfile.TemporaryDirectory() as folder:
        data = args.data and str(args.data.absolute())
        task = Task(args.device, folder, args.minutes * 60, data)
        reports = run_checks(checks, args.out.absolute(), task, head, print_line)
    print_table(reports)
    if not all(report['ok'] for report in reports):
        sys.exit(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='where results go')
    parser.add_argument('--minutes', type=float, default=8, help='for all checks. Defaults to 8')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda',
                        help='cpu: everything in small. Defaults to cuda')  # fmt: skip
    parser.add_argument('--only', nargs='+', choices=CHECKS, default=CHECKS, metavar='CHECK',
                        help=f'some of: {", ".join(CHECKS)}')  # fmt: skip
    parser.add_argument('--data', type=Path, metavar='DIR',
                        help='train on the photographs in DIR/images with annotations/train.json '
                             'and val.json (COCO format), instead of digits')  # fmt: skip
    args = parser.parse_args()
    if not args.minutes > 0:
        raise ConfigError(f'--minutes must be more than 0, got {args.minutes:g}.')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError(
            f'torch {torch.__version__} finds no GPU; --device cpu runs the same checks in small.'
        )
    for name in ('train', 'val') if args.data else ():
        if not (args.data / f'annotations/{name}.json').is_file():
            raise ConfigError(f'--data {args.data} has no annotations/{name}.json.')
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        try_writing(args.out)
    except OSError as error:
        raise ConfigError(f'--out {args.out} cannot be written: {error.strerror}.') from error
    return args


def print_line(report: Mapping) -> None:
    """Print how one check ended."""
    kept = [it['ok'] for it in report['bars'] if it['ok'] is not None]
    result = f'{sum(kept)} of {len(kept)} bars kept'
    result += f'; {report["error"]}' if 'error' in report else ''
    word = 'ok' if report['ok'] else 'FAILED'
    print(f'{report["check"]:9} {word:6} {report["seconds"]:4.0f} s  {result}', flush=True)


def print_table(reports: Sequence[Mapping]) -> None:
    """Print the values of all checks."""
    table = Table('check', 'value of')
    for column in ('value', 'limit', 'ok'):
        table.add_column(column, justify='right', no_wrap=True)
    for report in reports:
        for it in report['bars']:
            what = f'{it["name"]}: {it["error"]}' if it.get('error') else it['name']
            numbers = ['-' if it[key] is None else f'{it[key]:.3g}' for key in ('value', 'limit')]
            ok = {True: 'yes', False: 'NO', None: '-'}[it['ok']]
            table.add_row(report['check'], what, *numbers, ok)
    Console(width=100).print(table)
