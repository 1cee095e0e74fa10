"""Runs the parts of preflight: static checks, measurements on images, checks of the teachers."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import set_random_seed
from torch import nn

from ..distiller import RdimKDDistiller, distilled_student
from ..distiller.distillation import Distillation
from ..errors import ConfigError, TrainingStoppedError
from ..options import explain
from ..random_state import preserved_random_state
from .categories import check_categories
from .classes import data_classes, label_map, teacher_classes
from .input_check import check_teacher_input
from .measurements import load_samples, measure_gradients, prepare
from .report import Report
from .static import check_static, is_live, topic, untrained_parts
from .teacher_eval import judge_aps, measure_aps, teacher_pipeline
from .timing import measure_time
from .whole_teacher import build_detector


def static_report(cfg: Config, model: nn.Module) -> Report:
    """Report on a distilled model without using images; random states are preserved."""
    report = Report(f'RdimKD preflight of {cfg.filename or "the config"}')
    with preserved_random_state():
        check_static(cfg, model, report)
    return report


def data_report(cfg: Config) -> Report:
    """Report what is suspicious about a run's data, for any model; no findings if nothing is."""
    report = Report(f'Data of {cfg.filename or "the config"}')
    check_categories(cfg, report)
    return report


def preflight(cfg: Config, model: nn.Module, num_images: int, eval_teacher: bool) -> Report:
    """Run all of preflight: on ``num_images`` training images, and the teacher's AP if asked for.

    With 0 images there are no measurements.
    """
    report = static_report(cfg, model)
    model = distilled_student(model).to(get_device())
    batches = _measure(cfg, model, num_images, report) if num_images else []
    for part in model.distill.per_teacher:
        if is_live(part) and (batches or eval_teacher):
            _check_teacher(cfg, model, part, batches, eval_teacher, report)
    return report


def _measure(cfg: Config, model: RdimKDDistiller, num_images: int, report: Report) -> list:
    """Report on gradients and time, and return the batches; [] if they cannot be used."""
    set_random_seed(0)
    loader, batches = load_samples(cfg, num_images)
    if not batches:
        report.error(
            'Training data',
            f'no object in any of {len(loader.dataset)} images',
            'compare metainfo.classes of the data set with the categories in its annotations',
        )
        return []
    try:
        prepare(cfg, model, batches)
        measure_gradients(model, batches, report)
        measure_time(cfg, model, batches, loader, report)
    except FloatingPointError as error:
        report.error('Not finite', str(error), "see the teacher's checkpoint and input")
        return []
    except TrainingStoppedError:
        raise
    except RuntimeError as error:
        # Some necks, e.g. RTMDet's, take only sizes that their own data pipelines make.
        report.error(
            'Training step',
            f'fails: {explain(error)}',
            'if it is about sizes, set pad_size_divisor=32 in the data_preprocessor of the '
            'student; if about memory, a smaller train_dataloader.batch_size',
        )
        return []
    return batches


def _check_teacher(
    cfg: Config,
    model: RdimKDDistiller,
    part: Distillation,
    batches: list,
    eval_teacher: bool,
    report: Report,
) -> None:
    source = part.teacher.source
    if source.model is None:
        why = f'{source.name} is a module, not a detector whose input and AP can be judged'
        report.ok(topic("Teacher's input", part), why)
        return
    data = data_classes(cfg)
    classes = teacher_classes(source) or ()
    of_teacher = label_map(classes, data or ())
    preprocessor = model.data_preprocessor
    try:
        detector = build_detector(part, get_device())
    except ConfigError as error:
        detector = None
        if eval_teacher:
            report.error(topic('Teacher AP', part), str(error), 'give the whole checkpoint')
    better = None
    if batches and not untrained_parts(part.teacher.load_plain().state_dict()):
        better = check_teacher_input(
            part,
            preprocessor,
            batches,
            detector,
            {label: own for own, label in of_teacher.items()},
            report,
            topic("Teacher's input", part),
        )
    if not eval_teacher or detector is None:
        return
    what = topic('Teacher AP', part)
    if cfg.get('val_dataloader') is None or not of_teacher:
        why = 'no class in common' if classes else 'its class names are not known'
        why = why if cfg.get('val_dataloader') else 'the config has no val_dataloader'
        report.ok(what, f'cannot be measured: {why}')
        return
    try:
        own = teacher_pipeline(source.config)
        aps = measure_aps(cfg, part, preprocessor, detector, of_teacher, own, better)
        judge_aps(aps, cfg, part, own, better, report, what)
    except (ConfigError, TrainingStoppedError):
        raise
    except Exception as error:  # from the data, the evaluator, or the detector on such images
        report.error(
            what,
            f'cannot be measured: {explain(error)}',
            'see val_dataloader and val_evaluator; test the teacher alone: python tools/test.py',
        )
