"""The demo: train a teacher, a plain and a RdimKD student on digits, and compare them."""

import argparse
import shlex
import sys
from pathlib import Path

from rdimkd_det.commands import cli
from rdimkd_det.datasets.digits import DigitsOptions
from rdimkd_det.demo import DemoOptions, run_demo
from rdimkd_det.errors import ConfigError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo')
    parser.add_argument('--data', type=Path, help='directory of the digits; default: data/digits')
    parser.add_argument(
        '--seed',
        '--seeds',
        dest='seeds',
        type=int,
        nargs='+',
        default=[0],
        help='a plain and a RdimKD student are trained per seed; default: 0',
    )
    parser.add_argument('--jobs', type=int, help='students trained at once; default: one per core')
    parser.add_argument(
        '--smoke', action='store_true', help='a minute on few images, to see that everything runs'
    )
    args = parser.parse_args()
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f'--seeds must be different and not negative, got {args.seeds}.')
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f'--jobs must be 1 or more, got {args.jobs}.')
    return args


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir or Path('work_dirs/demo_smoke' if args.smoke else 'work_dirs/demo')
    options = DemoOptions(
        work_dir=work_dir,
        data=args.data or (work_dir / 'digits' if args.smoke else Path('data/digits')),
        seeds=tuple(args.seeds),
        jobs=args.jobs,
        digits=DigitsOptions(num_train=64, num_val=16) if args.smoke else DigitsOptions(),
        epochs=1 if args.smoke else None,
    )
    run_demo(options, shlex.join(['python', *sys.argv]))


if __name__ == '__main__':
    cli.run(main)
