"""Several trainings at once, each in a process of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from ..errors import TrainingInterruptedError
from .history import read_history
from .progress import Status, progress_display
from .run import Run
from .training import Training, TrainingFailedError, is_done, resume_epoch

POLL_INTERVAL = 1.0  # seconds


def train_all(
    runs: Sequence[Run],
    num_jobs: int,
    console: Console,
    on_done: Callable[[Run], None] | None = None,
    keep_going: bool = False,
) -> None:
    """Run trainings, several at once, leaving out those that are done.

    Args:
        runs (Sequence[Run]): The trainings, in the order of their start; one that needs another
            waits for it.
        num_jobs (int): Trainings at once.
        console (Console): Where to show the progress.
        on_done (Callable, optional): Called with each training that has just got its result.
        keep_going (bool): Whether the others go on when one fails, except those that need it.
            Defaults to False.

    Raises:
        TrainingFailedError: One failed; the others have ended, or been stopped.
    """
    waiting = [run for run in runs if not is_done(run)]
    running: list[Training] = []
    failures: list[TrainingFailedError] = []
    try:
        with progress_display(console) as display:
            while waiting or running:
                ready = [run for run in waiting if all(map(is_done, run.needs))]
                for run in ready[: num_jobs - len(running)]:
                    waiting.remove(run)
                    running.append(Training(run))
                if not running:  # what still waits needs one that failed
                    break
                ended, failed = _poll(running)
                failures += failed.values()
                if failures and not keep_going:
                    break
                running = [training for training in running if training not in failed]
                display.update([Status(training, training in ended) for training in running])
                running = [training for training in running if training not in ended]
                if on_done is not None:
                    for training in ended:
                        on_done(training.run)
                time.sleep(POLL_INTERVAL if running else 0)
    finally:
        for training in running:
            training.stop()
    if failures:
        raise TrainingFailedError('; '.join(map(str, failures)))


def _poll(running: Sequence[Training]) -> tuple[list[Training], dict]:
    """Those that have ended well, and those that have failed with their errors."""
    ended, failed = [], {}
    for training in running:
        try:
            if training.poll():
                ended.append(training)
        except TrainingFailedError as error:
            failed[training] = error
    return ended, failed


def seconds_left(runs: Sequence[Run], num_jobs: int) -> float:
    """About how long trainings take that are not done yet.

    Args:
        runs (Sequence[Run]): The trainings.
        num_jobs (int): Trainings at once.
    """
    left = []
    for run in runs:
        if not is_done(run):
            pace = read_history(run.work_dir).pace or run.guessed_pace
            left.append(pace * (run.iterations - resume_epoch(run) * run.epoch_length))
    return max(sum(left) / num_jobs, *left, 0) if left else 0


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, its trainings with it.

    Raises:
        TrainingInterruptedError: In place of the ``KeyboardInterrupt``; says how to go on.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        message = 'interrupted; the same command goes on from there.'
        raise TrainingInterruptedError(message, status=130) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set from Python
