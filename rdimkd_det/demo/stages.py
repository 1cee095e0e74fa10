"""The stages of the demo: digits, teacher, students, report; each is done once."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress

from rdimkd_det.checks import check_work_dir
from rdimkd_det.datasets.digits import is_made, make_digits
from rdimkd_det.errors import ConfigError

from .history import read_history
from .plan import DemoOptions, Run, count_cores, plan_runs
from .progress import Status, format_time, progress_display
from .report import make_report
from .state import lock_directory
from .training import Training, check_settings, is_done, resume_epoch

POLL_INTERVAL = 1.0  # seconds
DIGITS_SECONDS, REPORT_SECONDS = 20, 30  # about


def run_demo(options: DemoOptions, command: str, console: Console | None = None) -> None:
    """Run all stages that are not done yet, and show the result.

    Args:
        options (DemoOptions): The user's choices.
        command (str): The command line, for the report.
        console (Console, optional): Where to print. Defaults to stdout.

    Raises:
        ConfigError: The directory cannot be used, or holds something else.
        TrainingFailedError: A training failed; the finished ones stay.
    """
    console = console or Console()
    check_work_dir(str(options.work_dir))
    lock = lock_directory(options.work_dir)
    if lock is None:
        raise ConfigError(f'another demo is running in {options.work_dir}.')
    with lock:
        _stop_on_signals()
        runs = plan_runs(options)
        for run in runs:
            check_settings(run)
        announce(options, runs, console)
        prepare_digits(options, console)
        train_all(runs[:1], 1, console)
        train_all(runs[1:], options.num_jobs, console)
        make_report(options, runs, command, console)


def announce(options: DemoOptions, runs: Sequence[Run], console: Console) -> None:
    """Say what will be done and how long that takes."""
    teacher, students = runs[0], runs[1:]
    digits_made = is_made(options.data, options.digits)
    counts = f'{options.digits.num_train} + {options.digits.num_val} images in {options.data}'
    seconds = [
        0 if digits_made else DIGITS_SECONDS,
        _seconds_left([teacher], 1),
        _seconds_left(students, options.num_jobs),
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


def prepare_digits(options: DemoOptions, console: Console) -> None:
    """Make the data set unless it is there."""
    total = options.digits.num_train + options.digits.num_val
    made = is_made(options.data, options.digits)
    with Progress(console=console, disable=made or not console.is_terminal) as progress:
        task = progress.add_task('making digits', total=total)
        make_digits(options.data, options.digits, on_image=lambda: progress.advance(task))


def train_all(runs: Sequence[Run], num_jobs: int, console: Console) -> None:
    """Run trainings, several at once, leaving out those that are done.

    Args:
        runs (Sequence[Run]): The trainings, in the order of their start.
        num_jobs (int): Trainings at once.
        console (Console): Where to show the progress.

    Raises:
        TrainingFailedError: One failed; the others have been stopped.
    """
    waiting = [run for run in runs if not is_done(run)]
    running: list[Training] = []
    if not waiting:
        return
    try:
        with progress_display(console) as display:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    running.append(Training(waiting.pop(0)))
                ended = [training for training in running if training.poll()]
                display.update([Status(training, training in ended) for training in running])
                running = [training for training in running if training not in ended]
                time.sleep(POLL_INTERVAL if running else 0)
    finally:
        for training in running:
            training.stop()


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' + ('' if number == 1 else 's')


def _seconds_left(runs: Sequence[Run], num_jobs: int) -> float:
    left = []
    for run in runs:
        if not is_done(run):
            pace = read_history(run.work_dir).pace or run.guessed_pace
            left.append(pace * (run.iterations - resume_epoch(run) * run.epoch_length))
    return max(sum(left) / num_jobs, *left, 0) if left else 0


def _stop_on_signals() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
