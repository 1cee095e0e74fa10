"""Placement of box labels, so that none hides another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .detections import Box


class Label(NamedTuple):
    """Position of a label."""

    x: float  # its left edge, or its right edge if ``at_right``
    y: float  # its top edge
    at_right: bool  # aligned with the right edge of its box instead of the left
    above: bool  # above its box instead of inside or below


def place_labels(
    boxes: Sequence[Box], widths: Sequence[float], height: float, canvas: tuple[float, float]
) -> list[Label]:
    """Place the label of each box above, below or inside it, away from earlier labels.

    The most important box comes first. Labels stay inside ``canvas`` (width, height) if they fit;
    where there is no room left, they overlap.
    """
    taken, labels = [], []
    for box, width in zip(boxes, widths):
        choices = list(_choices(box, width, height, canvas))
        free = (it for it in choices if not any(_overlap(it[1], other) for other in taken))
        label, area = next(free, choices[0])
        labels.append(label)
        taken.append(area)
    return labels


def _choices(
    box: Box, width: float, height: float, canvas: tuple[float, float]
) -> Iterator[tuple[Label, Box]]:
    """Yield possible labels with the areas that they cover, the best first; at least one."""
    (x1, x2), (y1, y2) = (
        (max(box[it], 0), min(box[it + 2], canvas[it]))  # rounding may put a box outside
        for it in (0, 1)
    )
    lines = [y1 + number * height for number in range(int((y2 - y1) / height))]
    sides = (True, False) if x1 > canvas[0] / 2 else (False, True)
    found = False
    for tops in ([y1 - height, y2], lines):
        for at_right in sides:
            left = x2 - width if at_right else x1
            for top in tops:
                area = left, top, left + width, top + height
                if left >= 0 and top >= 0 and area[2] <= canvas[0] and area[3] <= canvas[1]:
                    found = True
                    yield Label(x2 if at_right else x1, top, at_right, top < y1), area
    if not found:
        left, top = min(x1, canvas[0] - width), min(y1, canvas[1] - height)
        yield Label(left, top, False, False), (left, top, left + width, top + height)


def _overlap(first: Box, second: Box) -> bool:
    return all(first[it] < second[it + 2] and second[it] < first[it + 2] for it in (0, 1))
