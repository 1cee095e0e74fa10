"""Several trainings at once, each in its own process."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from rdimkd_det.errors import TrainingInterruptedError
from rdimkd_det.files.scalars import read_history

from .pace import logged_pace
from .progress import Status, progress_display
from .run import Run
from .training import Training, TrainingFailedError, is_done, steps_kept

POLL_INTERVAL = 1.0  # seconds


def train_all(
    runs: Sequence[Run],
    num_jobs: int,
    console: Console,
    on_done: Callable[[Run], None] | None = None,
    keep_going: bool = False,
) -> None:
    """Run trainings, several at once, except those that are done.

    Args:
        runs (Sequence[Run]): The trainings, in the order of their start; a training waits for those
            that it needs.
        num_jobs (int): Trainings at once.
        console (Console): Where to show the progress.
        on_done (Callable, optional): Called with each training as soon as it is done. Defaults to
            None.
        keep_going (bool): Whether a failure leaves the other trainings running, except those that
            need the failed one. Defaults to False.

    Raises:
        TrainingFailedError: A training failed; by then the others have ended or been stopped.
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
                if not running:  # those that still wait need one that failed
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
        for training in running:  # all at once, because each writes a checkpoint
            training.ask_to_stop()
        for training in running:
            training.stop()
    if failures:
        raise TrainingFailedError('; '.join(map(str, failures)))


def _poll(running: Sequence[Training]) -> tuple[list[Training], dict]:
    """Return the trainings that have ended well, and the failed ones with their errors."""
    ended, failed = [], {}
    for training in running:
        try:
            if training.poll():
                ended.append(training)
        except TrainingFailedError as error:
            failed[training] = error
    return ended, failed


def seconds_left(runs: Sequence[Run], num_jobs: int) -> float:
    """Estimate the seconds until all trainings are done.

    Args:
        runs (Sequence[Run]): The trainings, done or not.
        num_jobs (int): Trainings at once.
    """
    left = []
    for run in runs:
        if not is_done(run):
            pace = logged_pace(read_history(run.work_dir)) or run.guessed_pace
            left.append(pace * (run.iterations - steps_kept(run)))
    return max(sum(left) / num_jobs, *left, 0) if left else 0


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block and its trainings, as Ctrl-C does.

    Raises:
        TrainingInterruptedError: Replaces the ``KeyboardInterrupt``; says how to continue.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    earlier = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        message = 'interrupted; the same command continues.'
        raise TrainingInterruptedError(message, status=130) from None
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python
