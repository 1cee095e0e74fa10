"""Images with boxes as inline SVG, side by side."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import cv2

from ..errors import ConfigError
from .detections import IOU_THRESHOLD, SCORE_THRESHOLD, Box, Detection, Example
from .labels import Label, place_labels
from .page import equal_columns

CANVAS = 192  # largest width of a drawing in units, so that lines and labels suit all image sizes
LINE, GAP, LETTER = 8.0, 1.5, 4.2  # in units: height of a label, gap to its box, width of a letter
MOST_COLUMNS = 5, 3  # pictures side by side, on a wide page and on a phone
MAX_BYTES = 200_000  # a larger image file is shrunk and recompressed
MAX_SIDE = 640  # longer side of a shrunk image, in pixels
SHOWN_BY_BROWSERS = ('image/png', 'image/jpeg', 'image/webp')


def gallery(examples: Sequence[Example], names: Mapping[str, str]) -> str:
    """Show each image with the ground truth and with each detector's detections, as HTML.

    ``names`` maps the key of a detector in ``Example.found`` to its display name.
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
        wide, narrow = (equal_columns(len(cells), most) for most in MOST_COLUMNS)
        figures.append(
            f'<figure><div class="row" style="--wide:{wide};--narrow:{narrow}">{pictures}</div>'
            f'<figcaption>{name}</figcaption></figure>'
        )
    return f'<div class="examples">{"".join(figures)}</div>'


def legend(examples: Sequence[Example], detectors: str) -> str:
    """Explain, as plain text, a gallery of images chosen by :func:`~.detections.most_different`.

    ``detectors`` is what these are called, e.g. 'the runs'.
    """
    measure = f'by the F1 of their detections with a score of {SCORE_THRESHOLD} or more'
    if any(example.difference for example in examples):
        chosen = f'The val images on which {detectors} differ most, whichever is better, {measure}.'
    else:
        chosen = f'No val image sets {detectors} apart, {measure}; these are the first.'
    colours = f'Green: right class and an IoU of {IOU_THRESHOLD} or more; red and dashed: wrong.'
    return f'{chosen} {colours}'


def draw_example(example: Example, key: str | None = None) -> str:
    """Draw an image with the ground truth, or the detections of detector ``key``, as ``<svg>``."""
    scale = min(1.0, CANVAS / example.size[0])
    width, height = (side * scale for side in example.size)
    if key is None:
        shown, classes = example.truths, ['truth'] * len(example.truths)
    else:
        shown = sorted(example.found[key], key=lambda found: -found.score)
        classes = ['right' if found.right else 'wrong' for found in shown]
    boxes = [tuple(side * scale for side in detection.box) for detection in shown]
    scores = ['' if key is None else f' {detection.score:.2f}' for detection in shown]
    widths = [LETTER * len(it.name + score) for it, score in zip(shown, scores)]
    labels = place_labels(boxes, widths, LINE, (width, height))
    drawn = [_draw_label(*it) for it in zip(shown, scores, classes, labels)]
    drawn += [_draw_box(*it) for it in zip(boxes, classes)]
    drawn = ''.join(reversed(drawn))  # the highest score on top, and labels over boxes
    picture = f'<image width="{width:g}" height="{height:g}" href="{embed(example.path)}"/>'
    size = '' if scale == 1 else ' fine'
    return f'<svg class="boxes{size}" viewBox="0 0 {width:g} {height:g}">{picture}{drawn}</svg>'


def embed(path: Path) -> str:
    """Return an image file as a data URL, shrunk if the file is large."""
    kind = mimetypes.guess_type(path.name)[0]
    if kind in SHOWN_BY_BROWSERS and path.stat().st_size <= MAX_BYTES:
        content = path.read_bytes()
    else:
        image = cv2.imread(str(path))
        if image is None:
            raise ConfigError(f'image {path} cannot be read.')
        shrink = min(1.0, MAX_SIDE / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        kind, content = 'image/jpeg', cv2.imencode('.jpg', image)[1].tobytes()
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _draw_box(box: Box, css_class: str) -> str:
    x1, y1, x2, y2 = box
    place = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    return f'<g class="{css_class}"><rect class="halo" {place}/><rect {place}/></g>'


def _draw_label(detection: Detection, score: str, css_class: str, label: Label) -> str:
    y = label.y + LINE - GAP if label.above else label.y + GAP
    return (
        f'<g class="{css_class}"><text x="{label.x:.1f}" y="{y:.1f}"'
        f'{"" if label.above else " class=below"}{" text-anchor=end" if label.at_right else ""}>'
        f'{escape(detection.name)}<tspan class="score">{score}</tspan></text></g>'
    )
