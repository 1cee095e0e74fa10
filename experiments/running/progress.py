"""Progress of running trainings: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from rdimkd_det.files.scalars import read_history
from rdimkd_det.progress import format_time

from .pace import logged_pace
from .training import Training

LINE_INTERVAL = 30.0  # seconds


class Status:
    """Progress of a training.

    Args:
        training (Training): The training.
        ended (bool): Whether it has ended with its result. Defaults to False.
    """

    def __init__(self, training: Training, ended: bool = False) -> None:
        self.run = training.run
        self.step = self.run.iterations if ended else training.step()
        self.epoch = min(self.step // self.run.epoch_length + 1, self.run.epochs)
        history = read_history(self.run.work_dir)
        ap = (history.metrics() or {}).get('ap')
        self.num_validated = len(history.val)
        self.ap = '' if ap is None else f'AP {ap:.3f}'
        pace = training.pace(self.step) or logged_pace(history) or self.run.guessed_pace
        self.seconds_left = pace * (self.run.iterations - self.step)


class Bars:
    """One bar per running training."""

    def __init__(self, console: Console) -> None:
        columns = [
            TextColumn('{task.description}'),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn('epoch {task.fields[epoch]}'),
            TextColumn('[bold]{task.fields[ap]}'),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
        ]
        # No refresh thread, because trainings are forked from this process.
        self.progress = Progress(*columns, console=console, auto_refresh=False)
        self.tasks = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def update(self, statuses: Sequence[Status]) -> None:
        """Show the progress of the trainings.

        Args:
            statuses (Sequence[Status]): Status of each training that runs or has just ended.
        """
        for status in statuses:
            fields = _fields(status)
            if status.run not in self.tasks:
                total = status.run.iterations
                self.tasks[status.run] = self.progress.add_task(status.run.title, total, **fields)
            self.progress.update(self.tasks[status.run], completed=status.step, **fields)
        self.progress.refresh()


class Lines:
    """A line per training after each validation, and every 30 seconds while it advances."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.shown = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to clean up."""

    def update(self, statuses: Sequence[Status]) -> None:
        """See :meth:`Bars.update`."""
        for status in statuses:
            now, state = time.monotonic(), (status.num_validated, status.step)
            shown, at = self.shown.get(status.run, (None, 0.0))
            due = shown is None or shown[0] != state[0] or now - at >= LINE_INTERVAL
            if due and shown != state:
                self.shown[status.run] = (state, now)
                self.console.print(_line(status), soft_wrap=True, highlight=False)


def progress_display(console: Console) -> Bars | Lines:
    """Return bars for a terminal, and lines for any other output."""
    return Bars(console) if console.is_terminal else Lines(console)


def _fields(status: Status) -> dict[str, str]:
    ended = status.step >= status.run.iterations
    left = '' if ended else f'{format_time(status.seconds_left)} left'
    return {'epoch': f'{status.epoch}/{status.run.epochs}', 'ap': status.ap, 'left': left}


def _line(status: Status) -> str:
    run, fields = status.run, _fields(status)
    parts = [f'epoch {fields["epoch"]}', f'iteration {status.step}/{run.iterations}']
    return f'{run.title}: ' + ', '.join([*parts, *filter(None, [fields['ap'], fields['left']])])
