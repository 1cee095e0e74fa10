"""Results of the benchmark as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .steps import PLAIN


def print_report(report: Mapping) -> None:
    """Print all that has been measured: the content of the JSON file."""
    height, width = report['shape']
    what = f'{report["batch"]} x {height} x {width}, {report["machine"]["device"]}'
    if 'steps' in report:
        print_costs(f'steps: {what}', report['steps'], of=PLAIN)
        print(f'distilled step: {report["distilled_to_floor"]:.3f} of the floor, '
              f'{report["distilled_to_plain"]:.3f} of the student step; floor: student step + '
              f'{report["fastest_teacher"]} + reading both maps once = '
              f'{report["floor"]:.1f} ms')  # fmt: skip
    if 'operations' in report:
        print_operations(f'operations: {report["batch"]} x {height} x {width}', report)


def print_costs(title: str, costs: Mapping[str, Mapping], of: str) -> None:
    """Print costs by name, and their ratio to the one of the name ``of``."""
    rows = [
        (
            name,
            f'{cost["median"]:.1f}',
            f'{cost["low"]:.1f} - {cost["high"]:.1f}',
            f'{cost["median"] / costs[of]["median"]:.2f}' if of in costs else '-',
            f'{cost["memory"] / 2**20:.0f}',
        )
        for name, cost in costs.items()
    ]
    _print_table(title, ('ms', 'quartiles', f'of {of}', 'peak MiB'), rows)


def print_operations(title: str, report: Mapping) -> None:
    """Print operations, and their ratio to the student's step."""
    found = {
        name: report['operations'][name] for name in ('student_step', 'distilled_step', 'teacher')
    }
    rows = [
        (name.replace('_', ' '), f'{count:.1f}', f'{count / found["student_step"]:.3f}')
        for name, count in found.items()
    ]
    _print_table(title, ('GFLOP', 'of student step'), rows)
    print(f"the teacher's weights: {report['weights']['teacher'] / 1e6:.0f} MB")


def _print_table(title: str, columns: Sequence[str], rows: Sequence[tuple]) -> None:
    table = Table(title=title)
    table.add_column(no_wrap=True)
    for column in columns:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)
