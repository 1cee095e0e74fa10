"""Results of finished trainings: one small JSON file per experiment and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime

from rdimkd_det.files.atomic import sha256_of, write_json
from rdimkd_det.files.scalars import read_history
from rdimkd_det.host.machine import describe_machine

from .plan import Plan
from .running import Run, is_done
from .running.pace import logged_seconds


def keep_result(plan: Plan, run: Run) -> None:
    """Write the result of a finished training, atomically."""
    history = read_history(run.work_dir)
    experiment = plan.study.table[run.kind]
    content = {
        'experiment': run.kind,
        'title': experiment.title,
        'seed': run.seed,
        **history.metrics(run.epochs),
        'ap_by_epoch': history.ap_line[1],
        'metrics': _coco_metrics(history.val[run.epochs]),
        'seconds': round(logged_seconds(history, run.iterations), 1),
        'threads': run.threads,
        'base': experiment.base,
        'changes': experiment.changes,
        'epochs': run.epochs,
        'images': asdict(plan.images),
        'teacher': _describe_teacher(run.needs),
        'checkpoint_sha256': sha256_of(run.checkpoint),
        'command': _command(plan, run),
        'date': datetime.now().astimezone().isoformat(timespec='seconds'),
        'machine': describe_machine(),
        'digest': run.digest,
    }
    path = plan.result_file(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def keep_finished(plan: Plan, runs: Iterable[Run]) -> None:
    """Write the results of finished trainings that are lost or not written yet."""
    for run in runs:
        if is_done(run) and not plan.result(run):
            keep_result(plan, run)


def _command(plan: Plan, run: Run) -> str:
    command = f'python tools/run_experiments.py {run.kind} --seeds {run.seed}'
    return f'{command} --data-set {plan.study.name}'


def _coco_metrics(line: Mapping) -> dict[str, float]:
    """Return all of a validation's COCO metrics, those of each class included."""
    names = {key: key.removeprefix('coco/') for key in line if key.startswith('coco/')}
    return {name: line[key] for key, name in names.items()}


def _describe_teacher(teachers: tuple[Run, ...]) -> Mapping | None:
    if not teachers:
        return None
    (teacher,) = teachers
    ap = read_history(teacher.work_dir).metrics(teacher.epochs)['ap']
    return {'experiment': teacher.kind, 'ap': ap, 'sha256': sha256_of(teacher.checkpoint)}
