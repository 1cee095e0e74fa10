"""Detections of several detectors, judged right or wrong, and the images that differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

SCORE_THRESHOLD = 0.3
IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Detection:
    """A detected object, or a ground-truth object."""

    box: Box
    name: str  # of its class
    score: float  # in [0, 1]; 1 for a ground-truth object
    right: bool = False  # whether :func:`match` assigned it to a true object


@dataclass(frozen=True)
class Example:
    """An image with its true objects and the detections of several detectors."""

    path: Path
    size: tuple[int, int]  # width and height in pixels
    truths: list[Detection]
    found: dict[str, list[Detection]]  # by the name of the detector

    def num_right(self, name: str) -> int:
        """Return the number of true objects that a detector found."""
        return sum(detection.right for detection in self.found[name])

    def score(self, name: str) -> float:
        """Return the F1 of a detector's detections; 1.0 where there is nothing to detect."""
        total = len(self.truths) + len(self.found[name])
        return 2 * self.num_right(name) / total if total else 1.0

    @property
    def difference(self) -> float:
        """float: Best F1 of a detector minus the worst."""
        scores = [self.score(name) for name in self.found]
        return max(scores) - min(scores)


def most_different(examples: Sequence[Example], count: int) -> list[Example]:
    """Return the images on which the F1 of the detectors differs most, in either direction."""
    return sorted(examples, key=lambda example: -example.difference)[:count]


def match(detections: Sequence[Detection], truths: Sequence[Detection]) -> list[Detection]:
    """Match detections to ground-truth objects of the same class, the best score first.

    Each detection takes the object with the highest IoU among those still free, if that IoU is at
    least ``IOU_THRESHOLD``; then it is ``right``.
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
    """Return the intersection over union of two boxes."""
    sides = [
        max(0.0, min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]))
        for axis in (0, 1)
    ]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - sides[0] * sides[1]
    return sides[0] * sides[1] / union if union > 0 else 0.0
