"""Run the experiments on digits that have no result yet; stop when you like, and go on later."""

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rdimkd_det.commands import cli
from rdimkd_det.datasets.digits import DigitsOptions
from rdimkd_det.errors import ConfigError
from rdimkd_det.experiments.plan import Plan
from rdimkd_det.experiments.plots import draw
from rdimkd_det.experiments.stages import run_experiments
from rdimkd_det.experiments.summary import (
    collect,
    insert_report,
    markdown_report,
    mean_and_error,
)
from rdimkd_det.experiments.table import Experiment, select
from rdimkd_det.files.whole import write_text
from rdimkd_det.machine import count_cores
from rdimkd_det.trainings import ROOT

DOCUMENT = ROOT / 'docs' / 'results.md'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='GROUP', help='groups, or single experiments')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--jobs', type=int, help='trainings at once; default: one per core')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/experiments')
    parser.add_argument('--data', type=Path, help='directory of the digits; default: data/digits')
    parser.add_argument('--results', type=Path, help='default: docs/results/experiments')
    parser.add_argument('--list', action='store_true', help='list the experiments, and run none')
    parser.add_argument(
        '--report', action='store_true', help='write the tables into docs/results.md, run none'
    )
    parser.add_argument(
        '--smoke', action='store_true', help='few images and one epoch, to see that all runs'
    )
    args = parser.parse_args()
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f'--seeds must be different and not negative, got {args.seeds}.')
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f'--jobs must be 1 or more, got {args.jobs}.')
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    default = Plan()
    if not args.smoke:
        return Plan(
            args.work_dir or default.work_dir,
            args.data or default.data,
            args.results or default.results,
        )
    work_dir = args.work_dir or Path('work_dirs/experiments_smoke')
    return Plan(
        work_dir,
        args.data or work_dir / 'digits',
        args.results or work_dir / 'results',
        DigitsOptions(num_train=32, num_val=8),
        epochs=1,
    )


def list_experiments(plan: Plan, experiments: list[Experiment], seeds: list[int]) -> None:
    """Print the experiments and their results so far."""
    table = Table('experiment', 'what it is', 'groups')
    for column in ('runs', 'AP', 'error'):
        table.add_column(column, justify='right')
    outcomes = collect(plan, seeds)
    for experiment in experiments:
        scores = [*outcomes[experiment.name].scores().values()]
        numbers = ['-' if value is None else f'{value:.3f}' for value in mean_and_error(scores)]
        groups = ', '.join(experiment.groups)
        table.add_row(experiment.name, experiment.title, groups, str(len(scores)), *numbers)
    Console().print(table)


def write_report(plan: Plan, seeds: list[int]) -> None:
    """Write the tables and the plot into the documentation."""
    outcomes, picture = collect(plan, seeds), plan.results / 'results.svg'
    report = markdown_report(outcomes, seeds)
    if any(outcome.results for outcome in outcomes.values() if outcome.experiment.teacher):
        draw(outcomes, picture)
        report += f'\n\n![AP over d, weight and epoch]({os.path.relpath(picture, DOCUMENT.parent)})'
    document = DOCUMENT.read_text(encoding='utf-8')
    write_text(DOCUMENT, insert_report(document, report))
    print(f'wrote {DOCUMENT}')


def main() -> None:
    args = parse_args()
    plan, experiments = make_plan(args), select(args.names)
    if args.list:
        list_experiments(plan, experiments, args.seeds)
        return
    if args.report:
        write_report(plan, args.seeds)
        return
    run_experiments(plan, experiments, args.seeds, args.jobs or count_cores(), Console())


if __name__ == '__main__':
    cli.run(main)
