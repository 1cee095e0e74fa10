"""Run the experiments that have no result yet; stop when you like, and go on later."""

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rdimkd_det.commands import cli
from rdimkd_det.errors import ConfigError
from rdimkd_det.files.atomic import write_text
from rdimkd_det.host.machine import count_cores

from .plan import Plan
from .running import ROOT
from .stages import run_experiments
from .study import Experiment, list_studies, load_study
from .summary import collect, insert_report, markdown_report, mean_and_error


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('names', nargs='*', metavar='GROUP', help='groups, or single experiments')
    parser.add_argument(
        '--data-set', choices=list_studies(), default='digits', help='default: digits'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--jobs', type=int, help='trainings at once; default: one per core')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/experiments')
    parser.add_argument('--data', type=Path, help='directory of the data set')
    parser.add_argument('--results', type=Path, help='directory of the results')
    parser.add_argument('--list', action='store_true', help='list the experiments, and run none')
    parser.add_argument(
        '--report', action='store_true', help='write the tables into the documentation, run none'
    )
    parser.add_argument(
        '--smoke', action='store_true', help='few images and one epoch, to see that all runs'
    )
    args = parser.parse_args()
    check_numbers(args)
    return args


def check_numbers(args: argparse.Namespace) -> None:
    """Check --seeds and --jobs.

    Raises:
        ConfigError: A seed is negative or given twice, or there is no job.
    """
    if min(args.seeds) < 0 or len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f'--seeds must be different and not negative, got {args.seeds}.')
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f'--jobs must be 1 or more, got {args.jobs}.')


def make_plan(args: argparse.Namespace) -> Plan:
    study = load_study(args.data_set)
    if not args.smoke:
        return Plan(
            study,
            args.work_dir or Path('work_dirs/experiments'),
            args.data or study.data,
            args.results or ROOT / study.results,
            study.images,
        )
    work_dir = args.work_dir or Path('work_dirs/experiments_smoke')
    data, results = args.data or work_dir / 'data', args.results or work_dir / 'results'
    return Plan(study, work_dir, data, results, study.few_images, epochs=1)


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
    document = ROOT / 'docs' / 'results.md'
    report = markdown_report(plan.study, outcomes, seeds)
    known = any(outcome.results for outcome in outcomes.values() if outcome.experiment.teacher)
    if known and plan.study.draw is not None:
        plan.study.draw(outcomes, picture)
        report += f'\n\n![AP over d, weight and epoch]({os.path.relpath(picture, document.parent)})'
    text = document.read_text(encoding='utf-8')
    write_text(document, insert_report(text, report, plan.study.name))
    print(f'wrote {document}')


def main() -> None:
    args = parse_args()
    plan = make_plan(args)
    experiments = plan.study.select(args.names)
    if args.list:
        list_experiments(plan, experiments, args.seeds)
        return
    if args.report:
        write_report(plan, args.seeds)
        return
    run_experiments(plan, experiments, args.seeds, args.jobs or count_cores(), Console())


if __name__ == '__main__':
    cli.run(main)
