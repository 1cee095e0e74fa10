"""Drawing of the image views of ``views``: one PNG, or an HTML page with a picture per image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle

from ...files.atomic import write_bytes, write_text
from ..labels import place_labels
from ..page import page, paragraph, section
from .views import ImageView

CELL = 2.1  # inches
UNRELATED = 2**0.5  # root mean square difference of unrelated standardised maps
CELL_POINTS = 118  # longer side of a drawn image in points, approximately
LINE, LETTER = 7.6, 3.1  # in points: height of a label, width of a letter
BOX_COLOUR, LABEL_COLOUR = '#46e08a', '#10131a'
LEGEND = (
    'The first row shows what each detects. Each row below is a level of the feature maps (its tap '
    "and stride): the teacher's map, and each student's beside its difference from that.",
    "Colours are the three directions in which the teacher's map varies most inside the subspace, "
    'each standardised: where student and teacher have equal colours they agree. The difference '
    'is the root mean square over all directions, from 0 (black) to 1.4 (bright), where they are '
    'unrelated.',
    "The percentage is the share of the teacher's variance in the subspace that the student "
    'explains on this image; a map that does not vary, as one of a single position, has none.',
)


def write_pictures(views: Sequence[ImageView], out: Path) -> None:
    """Write one .png of all images, or an .html page with a picture per image."""
    if out.suffix == '.png':
        write_bytes(out, render(views))
        return
    sections = [*map(paragraph, LEGEND)]
    for view in views:
        picture = base64.b64encode(render([view], named=False)).decode()
        name = escape(str(view.path), quote=True)
        image = f'<img alt="{name}" src="data:image/png;base64,{picture}">'
        sections.append(section(view.path.name, f'<div class="scroll wide">{image}</div>'))
    write_text(out, page('Teacher and students in the subspace', sections))


def render(views: Sequence[ImageView], named: bool = True) -> bytes:
    """Draw images below each other, with the names of their files, as a PNG."""
    columns = 1 + 2 * len(_students(views[0]))
    rows = [1 + len(view.levels) for view in views]
    figure = Figure(figsize=(CELL * columns, CELL * sum(rows)), layout='constrained')
    parts = figure.subfigures(len(views), 1, squeeze=False, height_ratios=rows)[:, 0]
    for part, view in zip(parts, views):
        draw(part, view, view.path.name if named else '')
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100)
    return buffer.getvalue()


def draw(figure: SubFigure, view: ImageView, title: str) -> None:
    """Draw one image: a row of detections, and below it a row per FPN level."""
    names = _students(view)
    grid = figure.subplots(1 + len(view.levels), 1 + 2 * len(names), squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    _draw_detections(grid[0, 0], view.image, view.detections.get('teacher', ()))
    titles = [title, 'teacher' if 'teacher' in view.detections else '']
    grid[0, 0].set_title(', '.join(filter(None, map(drawable, titles))), fontsize=9)
    for row, level in enumerate(view.levels, start=1):
        _show(grid[row, 0], level.teacher, 'teacher' if row == 1 else '')
        grid[row, 0].set_ylabel(level.name, fontsize=9)
    for number, name in enumerate(names):
        left, right = grid[:, 1 + 2 * number], grid[:, 2 + 2 * number]
        left[0].set_title(name, fontsize=9)
        _draw_detections(left[0], view.image, view.detections[name])
        for row, level in enumerate(view.levels, start=1):
            student = level.students.get(name)
            if student is None:
                _say(left[row], 'other channels')
                continue
            if student.explained is None:
                _show(left[row], student.colours, f'{name}: \u2013')
                _say(right[row], 'no variance')
                continue
            _show(left[row], student.colours, f'{name}: {student.explained:.0%}')
            title = 'difference' if row == 1 else ''
            _show(right[row], student.difference, title, cmap='magma', vmin=0, vmax=UNRELATED)


def drawable(text: str) -> str:
    """Prepare plain text for matplotlib: '?' for characters its font lacks, '$' escaped."""
    known = get_font(findfont(FontProperties())).get_charmap()
    return ''.join(it if ord(it) in known else '?' for it in text).replace('$', r'\$')


def _show(axes: Axes, picture: np.ndarray, title: str, **options) -> None:
    axes.imshow(picture, interpolation='nearest', **options)
    axes.set_title(title, fontsize=8)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha='center', va='center', fontsize=8)


def _students(view: ImageView) -> list[str]:
    return [name for name in view.detections if name != 'teacher']


def _draw_detections(axes: Axes, image: np.ndarray, detections: Sequence) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    detections = sorted(detections, key=lambda found: -found[2])
    texts = [drawable(f'{name} {score:.2f}') for _, name, score in detections]
    point = max(height, width) / CELL_POINTS
    boxes, widths = [box for box, *_ in detections], [LETTER * point * len(it) for it in texts]
    labels = place_labels(boxes, widths, LINE * point, (width, height))
    label_box = dict(facecolor=BOX_COLOUR, edgecolor='none', pad=0.6)
    for (x1, y1, x2, y2), text, label in reversed(list(zip(boxes, texts, labels))):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=BOX_COLOUR))
        text = axes.text(label.x, label.y, text, fontsize=6, color=LABEL_COLOUR, bbox=label_box)
        text.set(va='top', ha='right' if label.at_right else 'left', clip_on=True)
