"""Results of the benchmark as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from .steps import PLAIN


def print_report(report: Mapping) -> None:
    """Print all that has been measured.

    Args:
        report (Mapping): Content of the JSON file.
    """
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
    """Print costs, and their ratio to one of them.

    Args:
        title (str): Title of the table.
        costs (Mapping[str, Mapping]): Name to the fields of a ``Cost``.
        of (str): Name of the cost that the others are divided by.
    """
    table = Table(title=title)
    table.add_column(no_wrap=True)
    for column in ('ms', 'quartiles', f'of {of}', 'peak MiB'):
        table.add_column(column, justify='right', no_wrap=True)
    for name, cost in costs.items():
        share = f'{cost["median"] / costs[of]["median"]:.2f}' if of in costs else '-'
        quartiles = f'{cost["low"]:.1f} - {cost["high"]:.1f}'
        table.add_row(name, f'{cost["median"]:.1f}', quartiles, share,
                      f'{cost["memory"] / 2**20:.0f}')  # fmt: skip
    Console(width=100).print(table)


def print_operations(title: str, report: Mapping) -> None:
    """Print operations, and their ratio to the student's step.

    Args:
        title (str): Title of the table.
        report (Mapping): Content of the JSON file.
    """
    operations = report['operations']
    table = Table(title=title)
    table.add_column(no_wrap=True)
    for column in ('GFLOP', 'of student step'):
        table.add_column(column, justify='right', no_wrap=True)
    for name in ('student_step', 'distilled_step', 'teacher'):
        share = operations[name] / operations['student_step']
        table.add_row(name.replace('_', ' '), f'{operations[name]:.1f}', f'{share:.3f}')
    Console(width=100).print(table)
    print(f"the teacher's weights: {report['weights']['teacher'] / 1e6:.0f} MB")
