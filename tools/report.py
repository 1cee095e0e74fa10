"""Compare trainings: one HTML file with curves, AP by class and size, images, and configs."""

import argparse
import shlex
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from rdimkd_det.commands import cli
from rdimkd_det.errors import ConfigError, TrainingStoppedError, last_line
from rdimkd_det.files.atomic import write_text
from rdimkd_det.host.machine import describe_machine
from rdimkd_det.reports.comparison import comparison_page
from rdimkd_det.reports.detections import Example, most_different
from rdimkd_det.reports.evaluation import Evaluation, evaluate, find_examples
from rdimkd_det.reports.runs import TrainedRun, read_runs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='work directories of trainings; the others are compared with the first',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('report.html'), help='default: report.html'
    )
    parser.add_argument('--images', type=int, default=6, help='val images to show; default: 6')
    parser.add_argument(
        '--no-eval', action='store_true', help='only what is in the logs; evaluate no checkpoint'
    )
    args = parser.parse_args()
    if args.images < 0:
        raise ConfigError(f'--images must be 0 or more, got {args.images}.')
    cli.check_out_file(args.out, '--out', folder_is_made=True)
    return args


def main() -> None:
    args = parse_args()
    console = Console(stderr=True)
    runs = read_runs(args.work_dirs)
    evaluations, remarks = ({}, []) if args.no_eval else evaluate_all(runs, console)
    facts = {
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'command': shlex.join(['python', *sys.argv]),
        **describe_machine(),
    }
    try:
        examples = choose_examples(runs, evaluations, args.images)
    except ConfigError as error:
        examples = []
        remarks.append(f'No images: {error}')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, comparison_page(runs, evaluations, examples, remarks, facts))
    for remark in remarks:
        print(remark, file=sys.stderr)
    print(f'wrote {args.out}')


def evaluate_all(
    runs: list[TrainedRun], console: Console
) -> tuple[dict[str, Evaluation], list[str]]:
    """Evaluate the runs; return the evaluations by name, and a remark per run that has none."""
    evaluations, remarks = {}, []
    for run in runs:
        try:
            evaluations[run.name] = evaluate(run, console)
        except (ConfigError, TrainingStoppedError) as error:
            remarks.append(f'No AP by class or size of {run.name}: {last_line(error)}')
    return evaluations, remarks


def choose_examples(
    runs: list[TrainedRun], evaluations: dict[str, Evaluation], count: int
) -> list[Example]:
    """Return the val images on which the runs differ most; none if their val images differ."""
    evaluated = [run for run in runs if run.name in evaluations]
    if len(evaluated) < 2 or count == 0:
        return []
    return most_different(find_examples(evaluated, evaluations), count)


if __name__ == '__main__':
    cli.run(main)
