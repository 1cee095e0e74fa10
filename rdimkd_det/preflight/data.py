"""The look at the data as a part of the report: lines, and a table of the data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data_check import DataReport
from ..data_check.findings import SetSummary
from .report import Finding, Report, Table

COLUMNS = ('data', 'file', 'images', 'with objects', 'boxes', 'objects', 'side', 'lost')
# Rows of the table of classes; with more classes, those with the fewest objects are shown.
MOST_CLASSES = 20


def add_data(data: DataReport, report: Report, all_is_told: bool = False) -> None:
    """Add warnings and errors to a report, or all findings."""
    for it in data.findings:
        text = it.text if it.file in it.text else f'{it.split}: {it.text}'
        if it.severity != 'ok' or all_is_told:
            report.findings.append(Finding(it.severity, it.topic, text, it.remedy))


def add_data_tables(data: DataReport, report: Report) -> None:
    """Add the tables of data sets and classes to a report, and their numbers."""
    if data.sets:
        report.figures['data'] = data.as_dict()
        report.data_tables += [_table_of_sets(data.sets), _table_of_classes(data.sets)]


def _table_of_sets(sets: Sequence[SetSummary]) -> Table:
    rows = [
        (
            each.split,
            Path(each.file).name,
            str(each.num_images),
            str(each.num_with_objects),
            str(each.num_boxes),
            str(each.num_objects),
            f'{each.median_side:g}',
            ', '.join(f'{name} {number}' for name, number in each.lost.items()) or '-',
        )
        for each in sets
    ]
    return Table(
        'Data; side: median square root of the area of an object, in pixels', COLUMNS, rows
    )


def _table_of_classes(sets: Sequence[SetSummary]) -> Table:
    numbers: dict[str, dict[str, int]] = {}
    for each in sets:
        for name, number in each.objects_by_class.items():
            of_class = numbers.setdefault(name, {})
            of_class[each.split] = of_class.get(each.split, 0) + number
    splits = list(dict.fromkeys(each.split for each in sets))
    title = 'Objects by class'
    names = list(numbers)
    if len(names) > MOST_CLASSES:
        title += f', the {MOST_CLASSES} of {len(names)} classes with the fewest'
        names = sorted(names, key=lambda name: sum(numbers[name].values()))[:MOST_CLASSES]
    rows = [(name, *(str(numbers[name].get(split, 0)) for split in splits)) for name in names]
    return Table(title, ('class', *splits), rows)
