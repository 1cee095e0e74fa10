"""The chart that only the demo needs: AP of its students over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from ..reports.charts import Line, draw_chart, from_zero, whole_numbers

COLOURS = {'teacher': '#8b7cf6', 'plain': '#d97706', 'rdimkd': '#2f7fe0'}


def draw_ap(students: Mapping[str, Sequence[Line]], teacher: float) -> str:
    """Draw AP over epochs.

    Args:
        students (Mapping[str, Sequence[Line]]): Kind of student to one line per seed.
        teacher (float): The teacher's final AP.

    Returns:
        str: An ``<svg>`` element.
    """
    labels = {'plain': 'plain student', 'rdimkd': 'RdimKD student'}

    def draw(axes: Axes) -> None:
        axes.axhline(teacher, color=COLOURS['teacher'], linestyle='--', label='teacher, at its end')
        for kind, lines in students.items():
            for number, (epochs, scores) in enumerate(lines):
                label = None if number else labels[kind]
                axes.plot(epochs, scores, 'o-', markersize=3, color=COLOURS[kind], label=label)
        axes.set(xlabel='epoch', ylabel='AP on val')
        from_zero(axes)
        axes.xaxis.set_major_locator(whole_numbers())

    return draw_chart('ap', draw)
