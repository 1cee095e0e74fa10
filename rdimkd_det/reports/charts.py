"""Charts drawn by matplotlib: as inline SVG, and as files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..commands.cli import check_out_file
from ..errors import ConfigError
from ..files.atomic import written_whole
from .page import equal_columns

LINE_COLOURS = ('#2f7fe0', '#d97706', '#12a594', '#c2559d', '#8b7cf6')
MOST_COLUMNS = 3  # charts side by side
ZERO_WIDTH_SPACE = '\u200b'
MOST_MARKED = 30  # a line with more points gets no markers
TEXT_COLOUR = '#123457'  # a placeholder, replaced by the page's text colour, light or dark
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


def draw_lines(name: str, lines: Mapping[str, Line], xlabel: str, ylabel: str, **axes) -> str:
    """Draw several lines, by label, in one chart, as an ``<svg>`` element.

    ``name`` is unique within its page. The x values are whole numbers; ``axes`` are further
    properties of matplotlib's axes, e.g. ``yscale='log'``.
    """

    def draw(on) -> None:
        for (label, (x, y)), colour in zip(lines.items(), cycle(LINE_COLOURS)):
            marker = 'o' if len(x) <= MOST_MARKED else None
            plain = label.replace('$', r'\$')  # matplotlib would read a formula
            if plain.startswith('_'):  # matplotlib would leave it out of the legend
                plain = ZERO_WIDTH_SPACE + plain
            on.plot(x, y, color=colour, linewidth=1.3, marker=marker, markersize=3, label=plain)
        on.set(xlabel=xlabel, ylabel=ylabel, **axes)
        # Even if there is only one epoch or iteration, and only one point.
        on.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if 'yscale' not in axes and 'ylim' not in axes:
            highest = on.dataLim.y1
            on.set_ylim(0, 1.05 * highest if highest > 0 else None)

    return draw_chart(name, draw)


def charts(drawings: Sequence[tuple[str, str]]) -> str:
    """Return ``<svg>`` elements, given with their captions, side by side as HTML."""
    figures = [
        f'<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>'
        for svg, caption in drawings
    ]
    columns = equal_columns(len(figures), MOST_COLUMNS)
    return f'<div class="charts" style="--wide:{columns}">{"".join(figures)}</div>'


def draw_chart(name: str, draw: Callable[[Axes], None]) -> str:
    """Draw a chart as an ``<svg>`` element in the colours of the page, where its name is unique."""
    with mpl.rc_context({**STYLE, 'svg.hashsalt': name}), warnings.catch_warnings():
        # The browser renders the text with its own fonts, so matplotlib's font may lack glyphs.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
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
    # All charts of a page share one namespace of ids.
    svg = re.sub(r'(id="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )height="[^"]*" width="[^"]*"',
                  r'\1\2', svg, count=1)  # fmt: skip


def check_picture(path: Path) -> None:
    """Check that a figure can be saved in the file --out, before the work that it shows."""
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ConfigError(f'--out must be a picture (.{", .".join(formats)}), got {path}.')
    check_out_file(path, '--out')


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure in the format that its file's name says, whole or not at all."""
    with written_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)
