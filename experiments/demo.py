"""The demo: train a teacher, a plain and a RdimKD student on digits, and compare them."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from rich.console import Console
from rich.table import Table

from rdimkd_det.commands import cli
from rdimkd_det.distiller.inference import student_config
from rdimkd_det.files.atomic import write_json, write_text
from rdimkd_det.host.machine import count_cores, describe_machine
from rdimkd_det.progress import format_time
from rdimkd_det.reports.comparison import comparison_page
from rdimkd_det.reports.detections import most_different
from rdimkd_det.reports.evaluation import evaluate, find_examples
from rdimkd_det.reports.runs import TrainedRun, read_run

from .digits.images import DigitsOptions
from .digits.study import STUDY as DIGITS
from .plan import Plan, full_config
from .run_experiments import check_numbers
from .running import Run, seconds_left
from .stages import run_experiments
from .study import Experiment

TEACHER = Experiment('teacher', 'teacher', (), 'configs/digits/demo/fcos_r34_teacher.py', seed=0)
PLAIN = Experiment('plain', 'plain student', (), 'configs/digits/demo/fcos_r18_narrow.py')
RDIMKD = Experiment(
    'rdimkd', 'RdimKD student', (), 'configs/digits/demo/rdimkd_fcos_r34_r18.py', teacher='teacher'
)
STUDY = replace(
    DIGITS,
    table={it.name: it for it in (TEACHER, PLAIN, RDIMKD)},
    images=DigitsOptions(num_val=200),
    few_images=DigitsOptions(num_train=64, num_val=16),
    paces={'teacher': 0.18, 'plain': 0.12, 'distilled': 0.2},
)
TITLE = 'RdimKD on handwritten digits'
COLUMNS = ('', 'AP', 'AP50', 'AP75', 'params', 'training time')
KINDS = ('plain', 'rdimkd')
NUM_EXAMPLES = 6


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
    check_numbers(args)
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    work_dir = args.work_dir or Path('work_dirs/demo_smoke' if args.smoke else 'work_dirs/demo')
    data = args.data or (work_dir / 'digits' if args.smoke else STUDY.data)
    images, epochs = (STUDY.few_images, 1) if args.smoke else (STUDY.images, None)
    return Plan(STUDY, work_dir, data, work_dir / 'results', images, epochs)


def main() -> None:
    args = parse_args()
    plan, console, cores = make_plan(args), Console(), count_cores()
    alone = replace(plan, threads=int(os.environ.get('OMP_NUM_THREADS') or cores))
    jobs = min(args.jobs or cores, 2 * len(args.seeds))
    students = [
        run for seed in args.seeds for run in (plan.run(PLAIN, seed), plan.run(RDIMKD, seed))
    ]
    announce(args, alone.run(TEACHER, 0), students, jobs, console)
    run_experiments(alone, [TEACHER], [0], 1, console)
    run_experiments(plan, [PLAIN, RDIMKD], args.seeds, jobs, console)
    rows = collect_rows(plan, students)
    write_report(plan, rows, args.seeds, console)
    show_table(rows, console)
    console.print(f'{verdict(rows)}\nReport: {plan.work_dir / "report.html"}', soft_wrap=True)


def announce(
    args: argparse.Namespace, teacher: Run, students: Sequence[Run], jobs: int, console: Console
) -> None:
    """Print what will be trained, and how long that takes."""
    seconds = seconds_left([teacher], 1) + seconds_left(students, jobs)
    console.print(
        f'{TITLE}: a teacher of {teacher.epochs} epochs, then a plain and a RdimKD student of '
        f'{students[0].epochs} for seed {", ".join(map(str, args.seeds))}; about '
        f'{format_time(seconds)} of training left. Stop it when you like: the same command goes on '
        f'from there.',
        highlight=False,
        soft_wrap=True,
    )


# Numbers


def collect_rows(plan: Plan, students: Sequence[Run]) -> list[dict]:
    """Return the result of each training; with several seeds, the students' means too."""
    parameters = {name: count_parameters(it) for name, it in plan.study.table.items()}
    runs = [plan.run(TEACHER, 0), *students]
    rows = [{**plan.result(run), 'parameters': parameters[run.kind]} for run in runs]
    if len(students) > 2:
        rows += [mean_row([row for row in rows if row['experiment'] == it]) for it in KINDS]
    return rows


def mean_row(rows: Sequence[dict]) -> dict:
    mean = {key: fmean(row[key] for row in rows) for key in ('ap', 'ap50', 'ap75', 'seconds')}
    return {**rows[0], **mean, 'seed': None}


def count_parameters(experiment: Experiment) -> int:
    """Count the parameters of an experiment's detector, without those of distillation."""
    register_all_modules(init_default_scope=True)
    model = deepcopy(full_config(experiment).model)  # mmdet writes into what it builds from
    detector = MODELS.build(student_config(model))
    return sum(parameter.numel() for parameter in detector.parameters())


def gain(rows: Sequence[dict]) -> float:
    """Return the mean AP of the RdimKD students minus that of the plain students."""
    plain, rdimkd = (
        fmean(row['ap'] for row in rows if row['experiment'] == kind and row['seed'] is not None)
        for kind in KINDS
    )
    return rdimkd - plain


def verdict(rows: Sequence[dict]) -> str:
    """Return the result in one sentence."""
    seeds = len({row['seed'] for row in rows if row['experiment'] == 'rdimkd'} - {None})
    over = '' if seeds == 1 else f', in the mean of {seeds} seeds'
    difference = round(gain(rows), 3)  # mmdet logs no more digits
    student = 'The student that also learns from the teacher (RdimKD)'
    if difference:
        side = 'above' if difference > 0 else 'below'
        outcome = f'{student} ends {abs(difference):.3f} AP {side} the plain student{over}'
    else:
        outcome = f'{student} and the plain student end with equal AP{over}'
    return f'{outcome}; the two differ in the teacher only.'


def show_table(rows: Sequence[dict], console: Console) -> None:
    table = Table(*COLUMNS[:1])
    for column in COLUMNS[1:]:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        style = 'bold' if row['experiment'] == 'rdimkd' else None
        table.add_row(*cells(row), style=style)
    console.print(table)


def cells(row: dict) -> tuple[str, ...]:
    """Return the texts of a row, in the order of ``COLUMNS``."""
    which = 'mean' if row['seed'] is None else f'seed {row["seed"]}'
    title = row['title'] + ('' if row['experiment'] == 'teacher' else f', {which}')
    scores = [f'{row[key]:.3f}' for key in ('ap', 'ap50', 'ap75')]
    cores = '1 core' if row['threads'] == 1 else f'{row["threads"]} cores'
    time = f'{format_time(row["seconds"])} ({cores})'
    return title, *scores, f'{row["parameters"] / 1e6:.2f} M', time


# Report


def write_report(plan: Plan, rows: Sequence[dict], seeds: Sequence[int], console: Console) -> None:
    """Write ``results.json``, and compare the trainings of the first seed in ``report.html``."""
    facts = {
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'command': shlex.join(['python', *sys.argv]),
        'seeds of the students': ', '.join(map(str, seeds)),
        **describe_machine(),
    }
    kinds = (PLAIN, RDIMKD, TEACHER)  # each is compared with the first
    runs = [trained_run(plan, plan.run(it, seeds[0])) for it in kinds]
    evaluations = {run.name: evaluate(run, console) for run in runs}
    examples = most_different(find_examples(runs, evaluations), NUM_EXAMPLES)
    html = comparison_page(runs, evaluations, examples, [verdict(rows)], facts, TITLE)
    write_text(plan.work_dir / 'report.html', html)
    content = {**facts, 'gain': round(gain(rows), 4), 'rows': list(rows)}
    write_json(plan.work_dir / 'results.json', content)


def trained_run(plan: Plan, run: Run) -> TrainedRun:
    """Read a training; its config's own paths may be relative to the repository, where it ran."""
    trained = read_run(run.work_dir, run.kind)
    trained.config.val_dataloader.dataset.data_root = str(plan.data)
    trained.config.val_evaluator.ann_file = str(plan.data / 'annotations' / 'val.json')
    return trained


if __name__ == '__main__':
    cli.run(main)
