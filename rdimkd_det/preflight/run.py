"""Runs the parts of preflight: static checks, measurements on images, checks of the teachers."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from ..data_check import DataReport
from ..datasets.unlabelled import count_images
from ..distiller import RdimKDDistiller, distilled_student
from ..distiller.distillation import Distillation
from ..errors import ConfigError, TrainingStoppedError
from ..options import explain
from ..random_state import preserved_random_state
from ..samples import any_object
from .classes import data_classes, label_map, teacher_classes
from .data import add_data, add_data_tables
from .input_check import check_teacher_input
from .measurements import load_samples, measure_gradients, prepare
from .report import Report
from .spectrum import measure_spectra
from .static import check_static, is_live, topic, untrained_parts
from .teacher_eval import judge_aps, measure_aps, teacher_pipeline
from .timing import measure_time
from .whole_teacher import build_detector


def static_report(cfg: Config, model: nn.Module, data: DataReport | None = None) -> Report:
    """Report on a distilled model without using images; random states are preserved.

    ``data`` is what was found in the run's data; its warnings are part of the report.
    """
    report = Report(f'RdimKD preflight of {cfg.filename or "the config"}')
    with preserved_random_state():
        check_static(cfg, model, report)
    add_data(data or DataReport(), report)
    return report


def data_report(cfg: Config, data: DataReport) -> Report:
    """Report what is suspicious about a run's data, for any model; no findings if nothing is."""
    report = Report(f'Data of {cfg.filename or "the config"}')
    add_data(data, report)
    return report


def preflight(
    cfg: Config, model: nn.Module, data: DataReport, num_images: int, eval_teacher: bool
) -> Report:
    """Run all of preflight: on ``num_images`` training images, and the teacher's AP if asked for.

    With 0 images there are no measurements, and none are made on data with errors.
    """
    report = static_report(cfg, model)
    add_data(data, report, all_is_told=True)
    if not data.of('error'):
        _measure_all(cfg, model, num_images, eval_teacher, report)
    add_data_tables(data, report)
    return report


def _measure_all(
    cfg: Config, model: nn.Module, num_images: int, eval_teacher: bool, report: Report
) -> None:
    model = distilled_student(model).to(get_device())
    batches = _measure(cfg, model, num_images, report) if num_images else []
    for part in model.distill.per_teacher:
        if is_live(part) and (batches or eval_teacher):
            _check_teacher(cfg, model, part, batches, eval_teacher, report)


def _measure(cfg: Config, model: RdimKDDistiller, num_images: int, report: Report) -> list:
    """Report on gradients and time, and return the batches; [] if they cannot be used."""
    set_random_seed(0)
    loader, batches = load_samples(cfg, num_images)
    report_images(loader, report)
    labelled = [it for it in map(labelled_part, batches) if it]
    any_objects = any(any_object(it['data_samples']) for it in labelled)
    if not batches or (model.distill.labels and not any_objects):
        remedy = 'see what the pipeline filters, and whether the annotations have your classes'
        if not count_images(loader.dataset)[0]:
            remedy = 'set labels=False in the model, for a training without labels'
        report.error('Training data', f'no object in any of {len(loader.dataset)} images', remedy)
        return []
    try:
        prepare(cfg, model, batches)
        if model.distill.labels:
            measure_gradients(model, [it for it in batches if labelled_part(it)], report)
        measure_spectra(model, batches, report)
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


def report_images(loader: DataLoader, report: Report) -> None:
    """Report how many images have labels and how many have none, if there are such."""
    with_labels, without = count_images(loader.dataset)
    if not without:
        return
    text = f'{with_labels} with labels, {without} without'
    shares = getattr(loader.batch_sampler.sampler, 'num_per_source', None)
    if shares and with_labels:
        text += f'; a batch has {" + ".join(map(str, shares))}'
    report.ok('Training data', text)


def labelled_part(batch: dict) -> dict | None:
    """Return the labelled images of a batch from a data loader; None if it has none."""
    if isinstance(batch['data_samples'], Mapping):  # of images with labels only
        return batch
    pairs = zip(batch['inputs'], batch['data_samples'])
    kept = [(image, it) for image, it in pairs if it.metainfo.get('labelled', True)]
    return dict(zip(('inputs', 'data_samples'), map(list, zip(*kept)))) if kept else None


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
        its_input = 'recorded' if source.mean is None else 'given'
        report.ok(topic('Teacher AP', part), f'{why}; its input is the {its_input} one')
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
        # Without labels, objects would count as background in the teacher's own loss.
        labelled = [it for it in map(labelled_part, batches) if it]
        better = check_teacher_input(
            part,
            preprocessor,
            labelled or batches,
            detector if labelled else None,
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
