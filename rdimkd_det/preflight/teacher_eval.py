"""Measures the teacher's AP on the student's validation data, through the bridge and without."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn

from ..bridge import InputBridge
from ..datasets.scaling import enlarged
from ..distiller.distillation import Distillation
from ..files.configs import UnreadableConfigError, leaf_datasets, leaves_of, mappings, read_config
from ..progress import with_progress
from .input_formats import InputFormat
from .report import Report
from .whole_teacher import at_size_of, relabelled

# A detector below this AP was not trained on these data.
NEARLY_ZERO = 0.01
# Ratios of the AP through the bridge to the AP through the teacher's own pipeline.
MUCH_LOWER, LOWER = 0.75, 0.95


@dataclass(frozen=True)
class TeacherAPs:
    """AP of a teacher on the student's validation data, from 0 to 1."""

    bridge: float  # on the student's batches, through the bridge
    own: float  # through the teacher's own pipeline
    corrected: float | None = None  # through a bridge to an input that seems to fit better


def measure_aps(
    cfg: Config,
    part: Distillation,
    student_preprocessor: nn.Module,
    detector: nn.Module,
    labels: Mapping[int, int],
    own_pipeline: list | None,
    better: InputFormat | None,
) -> TeacherAPs:
    """Measure a teacher's AP through the bridge, and through its own pipeline.

    ``labels`` maps the teacher's labels to the data's; ``own_pipeline`` is from
    :func:`teacher_pipeline`, None for the student's; ``better`` is an input that seems to fit.
    """
    own_preprocessor = part.teacher.build_preprocessor().to(student_preprocessor.device)

    def in_its_own_way(batch: dict) -> Sequence:
        data = own_preprocessor(batch, False)
        return detector.predict(data['inputs'], data['data_samples'])

    bridged = bridged_ap(cfg, part, student_preprocessor, detector, labels)
    pipeline = own_pipeline or larger_pipeline(cfg, part)
    own = average_precision(cfg, in_its_own_way, labels, 'through its own pipeline', pipeline)
    if better is None:
        return TeacherAPs(bridged, own)
    bridge = InputBridge(student_preprocessor, better.build(like=own_preprocessor))
    corrected = bridged_ap(
        cfg, part, student_preprocessor, detector, labels, 'with another input', bridge
    )
    return TeacherAPs(bridged, own, corrected)


def bridged_ap(
    cfg: Config,
    part: Distillation,
    student_preprocessor: nn.Module,
    detector: nn.Module,
    labels: Mapping[int, int],
    description: str = 'through the bridge',
    bridge: InputBridge | None = None,
) -> float:
    """Return a teacher's AP on the student's batches, through its bridge or another one."""
    bridge = bridge or part.teacher.bridge

    def predict(batch: dict) -> Sequence:
        data = student_preprocessor(batch, False)
        inputs = bridge(data['inputs'], data['data_samples'])
        return detector.predict(inputs, at_size_of(inputs, data['data_samples']))

    return average_precision(cfg, predict, labels, description, larger_pipeline(cfg, part))


def larger_pipeline(cfg: Config, part: Distillation) -> list | None:
    """Return the validation pipeline with the teacher's larger images; None if they are none."""
    if part.shrink.scale == 1:
        return None
    pipeline = next(leaf_datasets(cfg.val_dataloader['dataset']))['pipeline']
    return enlarged(pipeline, part.shrink.scale)


def judge_aps(
    aps: TeacherAPs,
    cfg: Config,
    part: Distillation,
    own_pipeline: list | None,
    better: InputFormat | None,
    report: Report,
    topic: str,
) -> None:
    """Report on the measured APs, and on what to change; arguments as for :func:`measure_aps`."""
    figures = {name: ap for name, ap in asdict(aps).items() if ap is not None}
    report.figures.setdefault('teacher_ap', {})[topic] = figures
    text = f'{aps.bridge:.3f} through the bridge, {aps.own:.3f} through its own pipeline'
    if own_pipeline is None:
        text += " (its config has none: the student's, with the teacher's preprocessor)"
    if aps.corrected is not None:
        text += f', {aps.corrected:.3f} with the input that fits it better'
    if aps.corrected is not None and aps.corrected > aps.bridge:
        remedy = f'set {better.as_config()} in the data_preprocessor of {part.teacher.source.name}'
        report.error(topic, text, remedy)
    elif max(aps.bridge, aps.own) < NEARLY_ZERO:
        report.error(
            topic,
            f'{text}: its checkpoint is not trained, not of these data, or its input is wrong',
            'check model.teacher.checkpoint, and data_preprocessor in the teacher config',
        )
    elif aps.bridge < LOWER * aps.own:
        difference = _difference(cfg, own_pipeline, part)
        severity = report.error if aps.bridge < MUCH_LOWER * aps.own else report.warning
        severity(topic, f'{text}; {difference}', "bring the student's pipeline near the teacher's")
    else:
        report.ok(topic, text)


def average_precision(
    cfg: Config,
    predict: Callable[[dict], Sequence],
    labels: Mapping[int, int],
    description: str,
    pipeline: list | None = None,
) -> float:
    """Return the AP (0 to 1) of a detector on validation data, by the config's own evaluator.

    ``predict`` maps a batch of the data loader to data samples with ``pred_instances``; ``labels``
    maps their labels to the data's, and drops others; ``pipeline`` replaces the dataset's own.
    """
    settings = deepcopy(cfg.val_dataloader)
    if pipeline is not None:
        for leaf in leaf_datasets(settings['dataset']):
            leaf['pipeline'] = _with_data_of(leaf['pipeline'], pipeline)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        loader = Runner.build_dataloader(settings, seed=0)
        evaluator = _evaluator_of_boxes(cfg.val_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
    for batch in with_progress(loader, description):
        with torch.no_grad():
            samples = predict(batch)
        for sample in samples:
            kept = relabelled(sample.pred_instances, labels)
            # Masks are not evaluated, and are slow.
            sample.pred_instances = InstanceData(
                bboxes=kept.bboxes, scores=kept.scores, labels=kept.labels
            )
        evaluator.process(samples, batch)
    with contextlib.redirect_stdout(io.StringIO()):
        return _main_metric(evaluator.evaluate(len(loader.dataset)))


def _evaluator_of_boxes(config: Mapping | Sequence) -> Evaluator:
    """Build an evaluator as mmengine's Runner does, with boxes evaluated instead of masks."""
    config = deepcopy(config)
    for metric in mappings(config):
        kinds = metric.get('metric')
        if kinds == 'segm' or (isinstance(kinds, (list, tuple)) and 'segm' in kinds):
            metric['metric'] = 'bbox'
    if isinstance(config, Mapping) and 'metrics' in config:
        return EVALUATOR.build({'type': 'Evaluator', **config})
    return Evaluator(config)


def _main_metric(metrics: Mapping[str, float]) -> float:
    """Return the AP among an evaluator's metrics; 0 if it has none, as without predictions."""
    endings = ('bbox_mAP', 'mAP', 'AP', 'AP50')
    named = [value for end in endings for key, value in metrics.items() if key.endswith(end)]
    return max(0.0, float(next(iter(named or metrics.values()), 0.0)))


def teacher_pipeline(config: str | dict) -> list | None:
    """Return the validation or test pipeline of a teacher's config; None if it has none."""
    try:
        cfg = read_config(config, 'teacher')
    except UnreadableConfigError:
        return None
    for split in ('val', 'test'):
        for leaf in leaves_of(cfg, split):
            return deepcopy(leaf.get('pipeline'))
    return None


def _with_data_of(student: Sequence[Mapping], teacher: Sequence[Mapping]) -> list[Mapping]:
    """Return the teacher's pipeline, with the student's steps for annotations and packing.

    The data are the student's, and may lack the masks that the teacher's pipeline loads.
    """
    steps = [step for step in teacher if not _concerns_data(step)]
    return steps + [step for step in student if _concerns_data(step)]


def _concerns_data(step: Mapping) -> bool:
    return any(word in str(step['type']) for word in ('Annotations', 'Pack'))


def _difference(cfg: Config, own_pipeline: list | None, part: Distillation) -> str:
    """Describe the difference between the two pipelines: the image scales, else the bridge."""
    student_pipeline = next(leaf_datasets(cfg.val_dataloader['dataset']))['pipeline']
    scales = [_scales(pipeline or ()) for pipeline in (student_pipeline, own_pipeline)]
    if own_pipeline is not None and scales[0] != scales[1]:
        return f"the student's images are resized to {scales[0]}, the teacher's to {scales[1]}"
    bridge = part.teacher.bridge
    return f'the sizes are the same, so it is what the bridge makes of the input: {bridge}'


def _scales(pipeline: Sequence[Mapping]) -> str:
    scales = [step.get('scale') for step in pipeline if step.get('scale') is not None]
    return ', '.join(map(str, scales)) or 'nothing'
