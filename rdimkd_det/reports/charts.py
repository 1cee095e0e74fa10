"""The report's drawings as inline SVG: curves by matplotlib, images with boxes by hand."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .detections import Detection, Example

COLOURS = {'teacher': '#8b7cf6', 'plain': '#d97706', 'rdimkd': '#2f7fe0'}
LEVEL_COLOURS = ('#2f7fe0', '#12a594', '#d97706', '#c2559d', '#8b7cf6')
TEXT_COLOUR = '#123457'  # becomes the page's own, light or dark
STYLE = {
    'svg.fonttype': 'none',
    'font.family': 'sans-serif',
    'font.size': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.15,
    'legend.frameon': False,
    **{
        name: TEXT_COLOUR
        for name in ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'grid.color')
    },
    'ytick.color': TEXT_COLOUR,
}

Line = tuple[Sequence[float], Sequence[float]]


def draw_ap(students: Mapping[str, Sequence[Line]], teacher: float) -> str:
    """AP over epochs.

    Args:
        students (Mapping[str, Sequence[Line]]): Kind of student to one line per seed.
        teacher (float): The teacher's final AP.

    Returns:
        str: An ``<svg>`` element.
    """
    labels = {'plain': 'plain student', 'rdimkd': 'RdimKD student'}

    def draw(axes) -> None:
        axes.axhline(teacher, color=COLOURS['teacher'], linestyle='--', label='teacher, at its end')
        for kind, lines in students.items():
            for number, (epochs, scores) in enumerate(lines):
                label = None if number else labels[kind]
                axes.plot(epochs, scores, 'o-', markersize=3, color=COLOURS[kind], label=label)
        axes.set(xlabel='epoch', ylabel='AP on val')
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _draw('ap', draw)


def draw_losses(levels: Mapping[str, Line]) -> str:
    """Distillation losses over iterations.

    Args:
        levels (Mapping[str, Line]): Name of a level to its line.

    Returns:
        str: An ``<svg>`` element.
    """

    def draw(axes) -> None:
        for (name, (steps, losses)), colour in zip(levels.items(), LEVEL_COLOURS):
            axes.plot(steps, losses, color=colour, linewidth=1.3, label=name)
        axes.set(xlabel='iteration', ylabel='distillation loss')
        axes.set_ylim(bottom=0)

    return _draw('loss', draw)


def _draw(name: str, draw) -> str:
    with mpl.rc_context({**STYLE, 'svg.hashsalt': name}):
        figure = Figure(figsize=(4.2, 3.1), layout='constrained')
        axes = figure.add_subplot()
        draw(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        buffer = io.StringIO()
        nothing = {key: None for key in ('Creator', 'Date', 'Format', 'Type')}
        figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index('<svg') :].replace(TEXT_COLOUR, 'currentColor')
    # Ids are shared by all drawings of a page.
    svg = re.sub(r'(id="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )height="[^"]*" width="[^"]*"',
                  r'\1\2', svg, count=1)  # fmt: skip


def draw_example(example: Example, kind: str | None = None) -> str:
    """A val image with the ground truth, or with a student's detections.

    Args:
        example (Example): The image.
        kind (str, optional): The student. Defaults to None: the ground truth.

    Returns:
        str: An ``<svg>`` element.
    """
    width, height = example.size
    image = base64.b64encode(example.path.read_bytes()).decode()
    if kind is None:
        boxes = [_draw_box(truth, 'truth', width) for truth in example.truths]
    else:
        boxes = [
            _draw_box(found, 'right' if found.right else 'wrong', width)
            for found in reversed(example.found[kind])  # the surest on top
        ]
    picture = f'<image width="{width}" height="{height}" href="data:image/png;base64,{image}"/>'
    return f'<svg class="boxes" viewBox="0 0 {width} {height}">{picture}{"".join(boxes)}</svg>'


def _draw_box(detection: Detection, css_class: str, image_width: int) -> str:
    x1, y1, x2, y2 = detection.box
    above = y1 >= 10  # pixels: room for the label
    right = x1 > image_width / 2  # so that it ends within the image
    place = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    score = '' if css_class == 'truth' else f'<tspan class="score"> {detection.score:.2f}</tspan>'
    return (
        f'<g class="{css_class}"><rect class="halo" {place}/><rect {place}/>'
        f'<text x="{x2 if right else x1:.1f}" y="{y1 - 1.5 if above else y2 + 1.5:.1f}"'
        f'{"" if above else " class=below"}{" text-anchor=end" if right else ""}>'
        f'{escape(detection.name)}{score}</text></g>'
    )
