"""The val images on which the demo's students differ most."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmdet.apis import inference_detector, init_detector
from rich.console import Console
from torch import nn

from rdimkd_det.progress import watched
from rdimkd_det.reports.detections import (
    SCORE_THRESHOLD,
    Detection,
    Example,
    match,
    most_different,
)
from rdimkd_det.trainings import ROOT

from .plan import CONFIGS

NUM_CANDIDATES = 100
NUM_EXAMPLES = 6


def find_examples(data: Path, checkpoints: Mapping[str, Path], console: Console) -> list[Example]:
    """Pick the val images where two students differ most, whichever is better.

    Args:
        data (Path): The digits.
        checkpoints (Mapping[str, Path]): Kind of student, 'plain' and 'rdimkd', to its checkpoint.
        console (Console): Where to show a progress bar.

    Returns:
        list[Example]: ``NUM_EXAMPLES`` of the first ``NUM_CANDIDATES`` images, in the order of
        the difference in F1, and of the file for equal ones.
    """
    examples = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch and mmdet about each other, on the first image
        models = {kind: _load(path) for kind, path in checkpoints.items()}
        images = list(read_truths(data))[:NUM_CANDIDATES]
        for path, size, truths in watched(images, 'comparing detections', console=console):
            found = {kind: match(_detect(model, path), truths) for kind, model in models.items()}
            examples.append(Example(path, size, truths, found))
    return most_different(examples, NUM_EXAMPLES)


def _load(checkpoint: Path) -> nn.Module:
    # Every checkpoint is a plain student's, so that one config serves all.
    config = str(ROOT / CONFIGS['plain'])
    with contextlib.redirect_stdout(io.StringIO()):  # mmengine prints the path
        return init_detector(config, str(checkpoint), palette='random', device='cpu')


def _detect(model: nn.Module, path: Path) -> list[Detection]:
    instances = inference_detector(model, str(path)).pred_instances
    names = model.dataset_meta['classes']
    return [
        Detection(tuple(box), names[label], score)
        for box, label, score in zip(
            instances.bboxes.tolist(), instances.labels.tolist(), instances.scores.tolist()
        )
        if score >= SCORE_THRESHOLD
    ]


def read_truths(data: Path) -> Iterator[tuple[Path, tuple[int, int], list[Detection]]]:
    """Val images in the order of their ids: path, width and height, ground truth."""
    coco = json.loads((data / 'annotations' / 'val.json').read_text())
    names = {category['id']: category['name'] for category in coco['categories']}
    truths = {image['id']: [] for image in coco['images']}
    for annotation in coco['annotations']:
        x, y, width, height = annotation['bbox']
        truth = Detection((x, y, x + width, y + height), names[annotation['category_id']], 1.0)
        truths[annotation['image_id']].append(truth)
    for image in sorted(coco['images'], key=lambda image: image['id']):
        size = (image['width'], image['height'])
        yield data / 'val' / image['file_name'], size, truths[image['id']]
