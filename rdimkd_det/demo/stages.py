"""The stages of the demo: digits, teacher, students, report. Finished stages are skipped."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..commands.checks import check_work_dir
from ..datasets.digits import is_made
from ..errors import ConfigError
from ..machine import count_cores
from ..progress import format_time
from ..trainings import (
    Run,
    check_settings,
    prepare_digits,
    seconds_left,
    stop_on_signals,
    train_all,
)
from ..trainings.state import lock_directory
from .plan import DemoOptions, plan_runs
from .report import make_report

DIGITS_SECONDS, REPORT_SECONDS = 20, 30  # rough estimates


def run_demo(options: DemoOptions, command: str, console: Console | None = None) -> None:
    """Run all stages that are not finished yet, and show the result.

    Args:
        options (DemoOptions): The user's choices.
        command (str): The command line, for the report.
        console (Console, optional): Where to print. Defaults to stdout.

    Raises:
        ConfigError: A directory cannot be used, is in use by another demo, or holds a training with
            other settings.
        TrainingFailedError: A training failed; finished ones are kept.
        TrainingInterruptedError: A signal or Ctrl-C ended the demo.
    """
    console = console or Console()
    check_work_dir(str(options.work_dir))
    lock = lock_directory(options.work_dir)
    if lock is None:
        raise ConfigError(f'another demo is running in {options.work_dir}.')
    with lock, stop_on_signals():
        runs = plan_runs(options)
        for run in runs:
            check_settings(run)
        announce(options, runs, console)
        prepare_digits(options.data, options.digits, console)
        train_all(runs[:1], 1, console)
        train_all(runs[1:], options.num_jobs, console)
        make_report(options, runs, command, console)


def announce(options: DemoOptions, runs: Sequence[Run], console: Console) -> None:
    """Print the stages and how long each will take."""
    teacher, students = runs[0], runs[1:]
    digits_made = is_made(options.data, options.digits)
    counts = f'{options.digits.num_train} + {options.digits.num_val} images in {options.data}'
    seconds = [
        0 if digits_made else DIGITS_SECONDS,
        seconds_left([teacher], 1),
        seconds_left(students, options.num_jobs),
    ]
    reported = (options.work_dir / 'report.html').is_file() and not any(seconds)
    seconds.append(0 if reported else REPORT_SECONDS)
    stages = [
        f'digits    {counts}',
        f'teacher   FCOS R50, {_count(teacher.epochs, "epoch")}',
        f'students  FCOS R18, plain and RdimKD, seed {", ".join(map(str, options.seeds))}: '
        f'{len(students)} x {_count(students[0].epochs, "epoch")}, {options.num_jobs} at once',
        f'report    {options.work_dir / "report.html"}',
    ]
    console.print(
        f'RdimKD on handwritten digits, {_count(count_cores(), "core")}:', highlight=False
    )
    for number, (stage, needed) in enumerate(zip(stages, seconds), start=1):
        estimate = f'about {format_time(needed)}' if needed else 'done'
        console.print(f'  {number} {stage}  ({estimate})', highlight=False, soft_wrap=True)
    if sum(seconds) > REPORT_SECONDS:
        console.print(
            f'About {format_time(sum(seconds))} in all. Stop it when you like: the same command '
            'goes on from there.',
            highlight=False,
            soft_wrap=True,
        )


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')
