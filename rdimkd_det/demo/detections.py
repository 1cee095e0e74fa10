"""The val images on which the demo's students differ most."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..reports.detections import Example, most_different
from ..reports.evaluation import evaluate, find_examples
from ..reports.runs import TrainedRun, read_run
from ..trainings import Run

NUM_EXAMPLES = 6


def choose_examples(data: Path, runs: Sequence[Run], console: Console) -> list[Example]:
    """Pick the val images where students differ most, whichever is better.

    Args:
        data (Path): The digits.
        runs (Sequence[Run]): Finished trainings of students, each of another kind.
        console (Console): Where to show a progress bar.

    Returns:
        list[Example]: ``NUM_EXAMPLES`` images with the detections by kind, in the order of the
        difference in F1, and of the file for equal ones.
    """
    students = [_read(run, data) for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch and mmdet about each other, on the first image
        evaluations = {student.name: evaluate(student, console) for student in students}
    return most_different(find_examples(students[0], evaluations), NUM_EXAMPLES)


def _read(run: Run, data: Path) -> TrainedRun:
    student = read_run(run.work_dir, run.kind)
    # Its own paths may start at ``ROOT``, where it was trained.
    student.config.val_dataloader.dataset.data_root = str(data)
    student.config.val_evaluator.ann_file = str(data / 'annotations' / 'val.json')
    return student
