"""Check a distilled config before training: teacher, input, classes, weight and time."""

import argparse
import os
import sys
from pathlib import Path

# Set before torch is imported, which reads it: the profiler of torch 2.13 logs an irrelevant line.
os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli, launch
from rdimkd_det.commands.checks import check_data, check_work_dir
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.files.atomic import write_json
from rdimkd_det.files.configs import annotation_path, leaf_datasets
from rdimkd_det.preflight import preflight


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a distilled config')
    parser.add_argument(
        '--samples',
        type=int,
        default=8,
        metavar='N',
        help='training images to measure on; 0 for none. Defaults to 8',
    )
    parser.add_argument(
        '--eval-teacher',
        action='store_true',
        help="measure the teacher's AP on the student's validation data",
    )
    parser.add_argument('--json', type=Path, metavar='F', help='write the report to F as data')
    cli.add_common_arguments(parser)
    args = parser.parse_args()
    if args.samples < 0:
        raise ConfigError(f'--samples must be 0 or more, got {args.samples}.')
    if args.json is not None:
        cli.check_out_file(args.json, '--json')
    return args


def splits_of(cfg: Config) -> list[str]:
    """Return the splits to look at: test too, if its data are there and not those of val."""
    test = (cfg.get('test_dataloader') or {}).get('dataset')
    if test == (cfg.get('val_dataloader') or {}).get('dataset'):
        return ['train', 'val']
    paths = [annotation_path(leaf) for leaf in leaf_datasets(test)]
    there = bool(paths) and all(path and Path(path).is_file() for path in paths)
    return ['train', 'val', *(['test'] if there else [])]


def main() -> None:
    args = parse_args()
    MMLogger.get_current_instance().setLevel('CRITICAL')  # print only the report
    cfg = cli.read_config_file(args.config)
    launch.apply_common_arguments(cfg, args)
    check_work_dir(cfg.work_dir)
    with errors_explained(cfg):
        data = check_data(cfg, splits_of(cfg), thorough=True)
    model = launch.check_without_data(cfg, training=True)
    with errors_explained(cfg):
        report = preflight(cfg, model, data, args.samples, args.eval_teacher)
    report.print(Console())
    if args.json is not None:
        write_json(args.json, report.as_dict())
    sys.exit(0 if report.passed else 1)


if __name__ == '__main__':
    cli.run(main)
