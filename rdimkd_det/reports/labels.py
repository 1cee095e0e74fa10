"""Positions of box labels, without overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .detections import Box


class Label(NamedTuple):
    """Where a label stands.

    Args:
        x (float): Its left end, or its right end if it is ``at_right``.
        y (float): Its top.
        at_right (bool): Whether it ends where its box does, rather than begin there.
        above (bool): Whether it is above its box, rather than in it or below.
    """

    x: float
    y: float
    at_right: bool
    above: bool


def place_labels(
    boxes: Sequence[Box], widths: Sequence[float], height: float, canvas: tuple[float, float]
) -> list[Label]:
    """Place the label of each box above it, below it or in it, where no earlier label stands.

    Args:
        boxes (Sequence[Box]): The boxes, the most important first.
        widths (Sequence[float]): Of their labels.
        height (float): Of each label.
        canvas (tuple[float, float]): Width and height, within which labels stay if they can.

    Returns:
        list[Label]: One per box; on top of others where there is no room left.
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
    """Labels with the areas that they cover, the best first; at least one."""
    (x1, x2), (y1, y2) = (
        (max(box[it], 0), min(box[it + 2], canvas[it]))  # as rounding may have put it outside
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
