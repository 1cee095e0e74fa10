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
    """Pick the val images on which the students differ most, in either direction.

    Args:
        data (Path): Directory of the digits.
        runs (Sequence[Run]): Finished trainings of students, one per kind.
        console (Console): Where to show a progress bar.

    Returns:
        list[Example]: Up to ``NUM_EXAMPLES`` images with the detections by kind, sorted by
        difference in F1; ties keep the order of the annotation file.
    """
    students = [_read(run, data) for run in runs]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch and mmdet warn about each other on the first image
        evaluations = {student.name: evaluate(student, console) for student in students}
    return most_different(find_examples(students, evaluations), NUM_EXAMPLES)


def _read(run: Run, data: Path) -> TrainedRun:
    student = read_run(run.work_dir, run.kind)
    # The config's own paths may be relative to ``ROOT``, where the training ran.
    student.config.val_dataloader.dataset.data_root = str(data)
    student.config.val_evaluator.ann_file = str(data / 'annotations' / 'val.json')
    return student
