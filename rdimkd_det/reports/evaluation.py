"""AP by class and size, and detections, from one pass over the val data; cached for next time."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console
from torch.utils.data import DataLoader

from ..commands.checks import check_data
from ..commands.mistakes import errors_explained
from ..distiller.inference import trained_detector
from ..errors import ConfigError
from ..files.atomic import read_json, sha256_of, write_json
from ..files.configs import annotation_path, leaf_datasets, mappings
from ..host.registry import enter_scope
from ..options import type_name
from ..progress import with_progress
from .detections import SCORE_THRESHOLD, Detection, Example, match
from .runs import TrainedRun

CACHE = 'report_evaluation.json'
VERSION = 2  # of the cached content; version 1 could have 0.0 for sizes and classes without objects
SIZES = {'small': 's', 'medium': 'm', 'large': 'l'}


@dataclass(frozen=True)
class Evaluation:
    """Results of a checkpoint on its val data; sizes and classes without objects are left out."""

    scores: dict[str, float]  # 'AP', 'AP50', 'AP75', 'small', 'medium' and 'large' in [0, 1]
    classes: dict[str, float]  # AP by class
    # Image id to [x1, y1, x2, y2, label, score] of each detection of SCORE_THRESHOLD or more.
    detections: dict[str, list]


def evaluate(run: TrainedRun, console: Console) -> Evaluation:
    """Evaluate a run's last checkpoint, or read the result cached in its work directory.

    Raises:
        ConfigError: The run has no checkpoint, no CocoMetric, or val data that cannot be used.
        TrainingStoppedError: An image cannot be read.
    """
    if run.checkpoint is None:
        raise ConfigError(f'no whole checkpoint in {run.work_dir}.')
    if not run.config.get('val_dataloader'):
        raise ConfigError('its config has no val_dataloader.')
    made_of = _cache_key(run)
    kept = read_json(run.work_dir / CACHE)
    earlier = kept.get('made_of', {}).get('annotations', {})
    made_of['annotations'] = {**earlier, **made_of['annotations']}  # of files that are gone
    if kept.get('made_of') == made_of:
        return Evaluation(kept['scores'], kept['classes'], kept['detections'])
    metric = _coco_metric(run)
    check_data(run.config, ['val'])
    with errors_explained(run.config):
        evaluation = _test(run, metric, console)
    with contextlib.suppress(OSError):  # of somebody else; it is evaluated again the next time
        write_json(run.work_dir / CACHE, {'made_of': made_of, **vars(evaluation)})
    return evaluation


def find_examples(
    runs: Sequence[TrainedRun], evaluations: Mapping[str, Evaluation]
) -> list[Example]:
    """Return the val images of runs, with the detections of each; none if their val data differ."""
    found = [_examples_of(run, evaluations[run.name]) for run in runs]
    images = [[(it.path.name, it.size, it.truths) for it in examples] for examples in found]
    if any(of_run != images[0] for of_run in images):
        return []
    return [
        replace(same[0], found={name: them for it in same for name, them in it.found.items()})
        for same in zip(*found)
    ]


def _examples_of(run: TrainedRun, evaluation: Evaluation) -> list[Example]:
    check_data(run.config, ['val'])
    with errors_explained(run.config):
        dataset = val_loader(run).dataset
    classes = dataset.metainfo['classes']
    examples = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        truths = [
            Detection(tuple(it['bbox']), classes[it['bbox_label']], 1.0)
            for it in info['instances']
            if not it.get('ignore_flag')
        ]
        rows = evaluation.detections.get(str(info['img_id']), [])
        detections = [Detection(tuple(row[:4]), classes[row[4]], row[5]) for row in rows]
        found = {run.name: match(detections, truths)}
        size = info['width'], info['height']
        examples.append(Example(Path(info['img_path']), size, truths, found))
    return examples


def val_loader(run: TrainedRun) -> DataLoader:
    """Build the data loader of a run's val data."""
    enter_scope(run.config)
    with quiet():
        return Runner.build_dataloader(deepcopy(run.config.val_dataloader), seed=0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress mmengine's log and the output of pycocotools."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('CRITICAL')  # mmdet logs an error where nothing was detected
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _cache_key(run: TrainedRun) -> dict:
    """Return what identifies the checkpoint and the val data, to validate the cache."""
    file = run.checkpoint.stat()
    dataset = run.config.val_dataloader.dataset
    entries = [*leaf_datasets(dataset), *mappings(run.config.get('val_evaluator'))]
    paths = {path for path in map(annotation_path, entries) if path and Path(path).is_file()}
    return {
        'version': VERSION,
        'checkpoint': [run.checkpoint.name, file.st_size, file.st_mtime_ns],
        'val': repr(dataset.to_dict()),
        'annotations': {path: sha256_of(Path(path)) for path in paths},
    }


def _coco_metric(run: TrainedRun) -> ConfigDict:
    metrics = run.config.get('val_evaluator') or []
    for metric in metrics if isinstance(metrics, Sequence) else [metrics]:
        if type_name(metric) == 'CocoMetric':
            return ConfigDict(deepcopy(metric), metric='bbox', classwise=True, prefix='coco')
    raise ConfigError('its val_evaluator has no CocoMetric.')


@torch.no_grad()
def _test(run: TrainedRun, metric: ConfigDict, console: Console) -> Evaluation:
    loader = val_loader(run)
    device = get_device()
    detector = trained_detector(run.config.model, str(run.checkpoint), run.name).to(device)
    with quiet():
        evaluator = Evaluator(metric)
    evaluator.dataset_meta = loader.dataset.metainfo
    detections = {}
    for batch in with_progress(loader, f'evaluating {run.name}', console=console):
        samples = detector.test_step(batch)
        evaluator.process(samples, batch)
        detections.update({str(sample.img_id): _confident(sample) for sample in samples})
    with quiet():
        metrics = evaluator.evaluate(len(loader.dataset))
        if not metrics:
            metrics = _without_detections(evaluator, len(loader.dataset))
    names = {'AP': 'bbox_mAP', 'AP50': 'bbox_mAP_50', 'AP75': 'bbox_mAP_75'}
    names.update({size: f'bbox_mAP_{letter}' for size, letter in SIZES.items()})
    scores = {name: metrics.get(f'coco/{key}', math.nan) for name, key in names.items()}
    classes = {
        name: metrics.get(f'coco/{name}_precision', math.nan)
        for name in loader.dataset.metainfo['classes']
    }
    return Evaluation(_defined(scores), _defined(classes), detections)


def _without_detections(evaluator: Evaluator, num_images: int) -> dict[str, float]:
    """Return the metrics where nothing was detected; mmdet itself returns none in that case.

    Adds one detection of zero size and zero score: AP becomes 0 where there are objects, and stays
    undefined where there are none.
    """
    (metric,) = evaluator.metrics
    nothing = dict(bboxes=np.zeros((1, 4)), scores=np.zeros(1), labels=np.zeros(1, int))
    metric.results.append(({}, dict(nothing, img_id=metric.img_ids[0])))
    return evaluator.evaluate(num_images)


def _defined(scores: Mapping[str, float]) -> dict[str, float]:
    """Drop -1 and NaN, which mean that there are no objects, and round the others."""
    return {
        name: round(float(score), 3)
        for name, score in scores.items()
        if not math.isnan(score) and score >= 0
    }


def _confident(sample: DetDataSample) -> list[list[float]]:
    found = sample.pred_instances
    keep = found.scores >= SCORE_THRESHOLD
    parts = [found.bboxes, found.labels[:, None], found.scores[:, None]]
    rows = torch.cat([part.float() for part in parts], 1)[keep].tolist()
    return [[*(round(side, 1) for side in row[:4]), int(row[4]), round(row[5], 3)] for row in rows]
