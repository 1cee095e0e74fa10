"""Detections of the students on val images, right or wrong, and where the students differ most."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmdet.apis import inference_detector, init_detector
from torch import nn

from rdimkd_det.trainings import ROOT

from .plan import CONFIGS

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

SCORE_THRESHOLD = 0.3
IOU_THRESHOLD = 0.5
NUM_CANDIDATES = 100
NUM_EXAMPLES = 6


@dataclass(frozen=True)
class Detection:
    """A detected object.

    Args:
        box (Box): Its box.
        name (str): Its class.
        score (float): In [0, 1].
        right (bool): Whether it is a true object of this class, found for the first time.
    """

    box: Box
    name: str
    score: float
    right: bool = False


@dataclass(frozen=True)
class Example:
    """A val image with its true objects and each student's detections.

    Args:
        path (Path): The image file.
        size (tuple[int, int]): Width and height in pixels.
        truths (list[Detection]): The ground truth.
        found (dict[str, list[Detection]]): Kind of student to its detections.
    """

    path: Path
    size: tuple[int, int]
    truths: list[Detection]
    found: dict[str, list[Detection]]

    def num_right(self, kind: str) -> int:
        """Number of true objects that a student found."""
        return sum(detection.right for detection in self.found[kind])

    def score(self, kind: str) -> float:
        """F1 of a student's detections."""
        total = len(self.truths) + len(self.found[kind])
        return 2 * self.num_right(kind) / total if total else 1.0


def find_examples(data: Path, checkpoints: Mapping[str, Path]) -> list[Example]:
    """Pick the val images where two students differ most, whichever is better.

    Args:
        data (Path): The digits.
        checkpoints (Mapping[str, Path]): Kind of student, 'plain' and 'rdimkd', to its checkpoint.

    Returns:
        list[Example]: ``NUM_EXAMPLES`` of the first ``NUM_CANDIDATES`` images, in the order of
        the difference in F1, and of the file for equal ones.
    """
    examples = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of torch and mmdet about each other, on the first image
        models = {kind: _load(path) for kind, path in checkpoints.items()}
        for path, size, truths in list(read_truths(data))[:NUM_CANDIDATES]:
            found = {kind: match(_detect(model, path), truths) for kind, model in models.items()}
            examples.append(Example(path, size, truths, found))
    examples.sort(key=lambda example: -abs(example.score('rdimkd') - example.score('plain')))
    return examples[:NUM_EXAMPLES]


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


def match(detections: Sequence[Detection], truths: Sequence[Detection]) -> list[Detection]:
    """Judge detections: right is the best-scored one on each true object of its class.

    Args:
        detections (Sequence[Detection]): Of one image.
        truths (Sequence[Detection]): Its ground truth.

    Returns:
        list[Detection]: The best score first, with ``right`` set.
    """
    left = list(truths)
    judged = []
    for detection in sorted(detections, key=lambda detection: -detection.score):
        same = [truth for truth in left if truth.name == detection.name]
        best = max(same, key=lambda truth: iou(truth.box, detection.box), default=None)
        right = best is not None and iou(best.box, detection.box) >= IOU_THRESHOLD
        if right:
            left.remove(best)
        judged.append(Detection(detection.box, detection.name, detection.score, right))
    return judged


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    sides = [
        max(0.0, min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]))
        for axis in (0, 1)
    ]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union > 0 else 0.0


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
