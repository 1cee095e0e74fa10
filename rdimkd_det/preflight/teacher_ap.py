"""The teacher's AP in the log of a training, on the validation data and as the student sees it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.runner import Runner

from ..distiller import RdimKDDistiller
from ..distiller.distillation import Distillation
from ..files.atomic import read_json, sha256_of, write_json
from ..files.checkpoints import digest_of_file
from ..files.configs import annotation_path, leaf_datasets
from ..files.scalars import TEACHER_AP
from ..random_state import preserved_random_state
from .classes import data_classes, label_map, teacher_classes
from .static import is_live
from .teacher_eval import bridged_ap
from .whole_teacher import build_detector

FILE = 'teacher_ap.json'


def log_teacher_ap(runner: Runner, model: RdimKDDistiller) -> None:
    """Log each teacher's AP as a line and as the scalar 'teacher_ap', or 'teacher_ap_<name>'.

    It is measured once: ``teacher_ap.json`` in the work directory keeps it as long as teacher and
    validation data stay the same. A teacher that has none is a warning in the log. The random
    states are preserved.

    Raises:
        ConfigError: The checkpoint does not hold the whole detector.
    """
    file = Path(runner.work_dir) / FILE
    for part in model.distill.per_teacher:
        name = f'{TEACHER_AP}_{part.name}'.rstrip('_')
        why = _not_measurable(runner.cfg, part)
        if why:
            runner.logger.warning('RdimKD: %s cannot be measured: %s', name, why)
            continue
        made_of = _made_of(runner.cfg, part)
        kept = [read_json(file)]
        broadcast_object_list(kept)  # all ranks measure together, or none does
        own = kept[0].get(name)
        if not isinstance(own, dict) or own.get('made_of') != made_of:
            own = {'made_of': made_of, 'ap': _measure(runner.cfg, model, part)}
            if is_main_process():
                with contextlib.suppress(OSError):  # it is measured again the next time
                    write_json(file, {**kept[0], name: own})
        runner.logger.info('RdimKD: %s on the validation data: %.3f', name, own['ap'])
        runner.visualizer.add_scalar(name, own['ap'], step=runner.iter)


def _not_measurable(cfg: Config, part: Distillation) -> str:
    """Return why a teacher has no AP on the validation data; '' if it has one."""
    if not is_live(part):
        return 'the teacher is not run'
    if part.teacher.source.model is None:
        return f'{part.teacher.source.name} is a module, not a detector'
    if not cfg.get('val_dataloader'):
        return 'the config has no val_dataloader'
    return '' if _labels(cfg, part) else "no class is known to be both the teacher's and the data's"


def _labels(cfg: Config, part: Distillation) -> dict[int, int]:
    return label_map(teacher_classes(part.teacher.source) or (), data_classes(cfg) or ())


def _made_of(cfg: Config, part: Distillation) -> dict:
    """Return what determines the AP: teacher, input, data and metric."""
    dataset = cfg.val_dataloader.dataset
    paths = [annotation_path(leaf) for leaf in leaf_datasets(dataset)]
    return {
        'weights': digest_of_file(part.teacher.source.checkpoint),  # the head's, too
        'model': repr(part.teacher.source.model),
        'input': [repr(part.teacher.bridge), part.shrink.scale],
        'val': repr(dataset),
        'metric': repr(cfg.val_evaluator),
        'annotations': [sha256_of(Path(path)) for path in paths if path and Path(path).is_file()],
    }


def _measure(cfg: Config, model: RdimKDDistiller, part: Distillation) -> float:
    with preserved_random_state():
        detector = build_detector(part, get_device())
        ap = bridged_ap(
            cfg, part, model.data_preprocessor, detector, _labels(cfg, part), "the teacher's AP"
        )
    return round(ap, 4)
