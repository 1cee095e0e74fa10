"""Images with boxes as inline SVG, side by side."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2

from .detections import IOU_THRESHOLD, SCORE_THRESHOLD, Detection, Example

CANVAS = 192  # most units across a drawing, so that lines and labels suit images of any size
MAX_BYTES = 200_000  # of an image file that goes into the page as it is
MAX_SIDE = 640  # pixels of one that does not
SHOWN_BY_BROWSERS = ('image/png', 'image/jpeg', 'image/webp')


def gallery(examples: Sequence[Example], names: Mapping[str, str]) -> str:
    """Each image with the ground truth and with each detector's detections.

    Args:
        examples (Sequence[Example]): The images.
        names (Mapping[str, str]): Key of a detector in ``Example.found`` to its name for people.

    Returns:
        str: HTML.
    """
    figures = []
    for example in examples:
        cells = [('ground truth', None)]
        cells += [
            (f'{name}: {example.num_right(key)} of {len(example.truths)} right', key)
            for key, name in names.items()
        ]
        pictures = ''.join(
            f'<div>{draw_example(example, key)}{escape(caption)}</div>' for caption, key in cells
        )
        name = escape(example.path.name)
        figures.append(
            f'<figure><div class="row">{pictures}</div><figcaption>{name}</figcaption></figure>'
        )
    return f'<div class="examples">{"".join(figures)}</div>'


def legend(examples: Sequence[Example], detectors: str) -> str:
    """What a gallery of :func:`~.detections.most_different` shows.

    Args:
        examples (Sequence[Example]): The images.
        detectors (str): Whose detections, e.g. 'the runs'.

    Returns:
        str: Plain text.
    """
    measure = f'by the F1 of their detections with a score of {SCORE_THRESHOLD} or more'
    if any(example.difference for example in examples):
        chosen = f'The val images on which {detectors} differ most, whichever is better, {measure}.'
    else:
        chosen = f'No val image sets {detectors} apart, {measure}; these are the first.'
    colours = f'Green: right class and an IoU of {IOU_THRESHOLD} or more; red and dashed: wrong.'
    return f'{chosen} {colours}'


def draw_example(example: Example, key: str | None = None) -> str:
    """An image with the ground truth, or with a detector's detections.

    Args:
        example (Example): The image.
        key (str, optional): The detector. Defaults to None: the ground truth.

    Returns:
        str: An ``<svg>`` element.
    """
    scale = min(1.0, CANVAS / example.size[0])
    width, height = (side * scale for side in example.size)
    if key is None:
        boxes = [_draw_box(truth, 'truth', scale, width) for truth in example.truths]
    else:
        boxes = [
            _draw_box(found, 'right' if found.right else 'wrong', scale, width)
            for found in reversed(example.found[key])  # the surest on top
        ]
    picture = f'<image width="{width:g}" height="{height:g}" href="{embed(example.path)}"/>'
    size = '' if scale == 1 else ' fine'
    return (
        f'<svg class="boxes{size}" viewBox="0 0 {width:g} {height:g}">{picture}{"".join(boxes)}'
        '</svg>'
    )


def embed(path: Path) -> str:
    """An image file as a data URL, made smaller if it is large."""
    kind = mimetypes.guess_type(path.name)[0]
    if kind in SHOWN_BY_BROWSERS and path.stat().st_size <= MAX_BYTES:
        content = path.read_bytes()
    else:
        image = cv2.imread(str(path))
        shrink = min(1.0, MAX_SIDE / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        kind, content = 'image/jpeg', cv2.imencode('.jpg', image)[1].tobytes()
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _draw_box(detection: Detection, css_class: str, scale: float, image_width: float) -> str:
    x1, y1, x2, y2 = (side * scale for side in detection.box)
    above = y1 >= 10  # units: room for the label
    right = x1 > image_width / 2  # so that it ends within the image
    place = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    score = '' if css_class == 'truth' else f'<tspan class="score"> {detection.score:.2f}</tspan>'
    return (
        f'<g class="{css_class}"><rect class="halo" {place}/><rect {place}/>'
        f'<text x="{x2 if right else x1:.1f}" y="{y1 - 1.5 if above else y2 + 1.5:.1f}"'
        f'{"" if above else " class=below"}{" text-anchor=end" if right else ""}>'
        f'{escape(detection.name)}{score}</text></g>'
    )
