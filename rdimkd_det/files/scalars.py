"""Scalars that mmengine logged in a training, merged over all its resumed parts."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from .configs import counts_iterations

TEACHER_AP = 'teacher_ap'  # with several teachers, their names are added
AP_KEYS = {'ap': 'coco/bbox_mAP', 'ap50': 'coco/bbox_mAP_50', 'ap75': 'coco/bbox_mAP_75'}


@dataclass
class History:
    """Scalars of one training, as if it had never been interrupted."""

    train: dict[int, dict] = field(default_factory=dict)  # iteration to the scalars logged there
    # Epoch, or iteration in an iteration-based training, to the metrics of its validation; 'iter'
    # is the last iteration known to precede the validation.
    val: dict[int, dict] = field(default_factory=dict)
    # Folders that logged a loss, the oldest first; a test in the work directory logs none.
    parts: list[str] = field(default_factory=list)
    # AP of each teacher that ``DistillHook(eval_teacher=True)`` measured, by scalar.
    teacher_aps: dict[str, float] = field(default_factory=dict)

    @property
    def teacher_ap(self) -> float | None:
        """float | None: AP of the best teacher; None if none was measured."""
        return max(self.teacher_aps.values(), default=None)

    @property
    def iterations(self) -> int:
        """int: The last logged iteration; 0 if none is logged."""
        return max(self.train, default=0)

    def metrics(self, epoch: int | None = None) -> dict[str, float] | None:
        """Return 'ap', 'ap50' and 'ap75' in [0, 1] of an epoch or iteration, or the last validated.

        Those are left out that CocoMetric had no objects to measure on; None: no validation.
        """
        epoch = max(self.val, default=None) if epoch is None else epoch
        if epoch not in self.val:
            return None
        line = self.val[epoch]
        if not any('/' in key for key in line):  # without a single detection mmdet logs no metric
            return dict.fromkeys(AP_KEYS, 0.0)
        # AP is -1 where there are no objects to measure it on.
        return {name: line[key] for name, key in AP_KEYS.items() if line.get(key, -1) >= 0}

    @property
    def ap_line(self) -> tuple[list[int], list[float]]:
        """tuple[list[int], list[float]]: Validated epochs or iterations, and their AP."""
        points = [(step, self.metrics(step)) for step in sorted(self.val)]
        points = [(step, metrics['ap']) for step, metrics in points if 'ap' in metrics]
        return [step for step, _ in points], [ap for _, ap in points]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the iterations and values of one logged scalar."""
        points = [(step, line[key]) for step, line in sorted(self.train.items()) if key in line]
        return [step for step, _ in points], [value for _, value in points]

    def losses(self, prefix: str = 'loss_rdimkd_') -> list[str]:
        """Return the names of the logged scalars with a prefix, the finest stride first."""
        names = {key for line in self.train.values() for key in line if key.startswith(prefix)}
        return sorted(names, key=lambda name: (len(name), name))


def read_history(
    work_dir: Path, skip: Container[str] = (), due: Sequence[int] | None = None
) -> History:
    """Merge the scalars of all parts of a training; for a repeated iteration, the last part counts.

    ``skip`` names parts to leave out, ``due`` is the result of :func:`due_validations`. mmengine
    does not log the iteration of a validation of an iteration-based training; without ``due``, it
    counts as made at the last iteration that was logged before it.
    """
    history = History()
    for part in list_parts(work_dir):
        if part not in skip:
            lines = list(_lines(work_dir / part / 'vis_data' / 'scalars.json'))
            _add_part(history, part, lines, due)
    return history


def due_validations(config: Config) -> list[int] | None:
    """Return the iterations at which an iteration-based training validates.

    None if the training counts epochs, or if the config does not say it plainly.
    """
    loop = config.get('train_cfg') or {}
    if not counts_iterations(config) or loop.get('dynamic_intervals'):
        return None
    end, interval = loop.get('max_iters'), loop.get('val_interval', 1000)  # mmengine's default
    if not (isinstance(end, int) and isinstance(interval, int) and interval > 0):
        return None
    due = {*range(interval, end + 1, interval), end}
    return sorted(it for it in due if it >= loop.get('val_begin', 1))


def list_parts(work_dir: Path) -> list[str]:
    """Return the names of the folders that mmengine made, one per start, the oldest first."""
    return sorted(path.parent.name for path in Path(work_dir).glob('*/vis_data'))


def _add_part(history: History, part: str, lines: list[dict], due: Sequence[int] | None) -> None:
    for line in lines:
        history.teacher_aps.update({k: it for k, it in line.items() if k.startswith(TEACHER_AP)})
    lines = [line for line in lines if not any(key.startswith(TEACHER_AP) for key in line)]
    train = [line for line in lines if 'loss' in line]
    if train:
        history.parts.append(part)
        # Drop what earlier parts logged beyond the checkpoint that this part resumed from.
        first = min(line['step'] for line in train)
        history.train = {step: line for step, line in history.train.items() if step < first}
        history.val = {step: line for step, line in history.val.items() if line['iter'] < first}
    by_iter = not any('epoch' in line for line in train)  # log_processor=dict(by_epoch=False)
    for line in lines:
        step, iterations = line['step'], history.iterations
        if 'loss' in line:
            history.train[step] = line
        elif step > 0:
            history.val[step] = {**line, 'iter': step if train and by_iter else iterations}
        else:
            # mmengine (0.10.7, OneDL 0.10.12): an IterBasedTrainLoop stays in epoch 0, and
            # LoggerHook logs that epoch as the step unless it has log_metric_by_epoch=False.
            iteration = _iteration_of_validation(history, due)
            if train and iteration > 0:
                history.val[iteration] = {**line, 'iter': iteration}


def _iteration_of_validation(history: History, due: Sequence[int] | None) -> int:
    """Return the first due iteration that is not before the last logged one, nor validated yet."""
    if due is None:
        return history.iterations
    earliest = max(history.iterations, max(history.val, default=0) + 1)
    return next((iteration for iteration in due if iteration >= earliest), 0)


def _lines(path: Path) -> Iterator[dict]:
    if not path.is_file():
        return
    for text in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # a line that was cut off when the process was killed
            continue
        if isinstance(line, dict) and 'step' in line:
            yield line
