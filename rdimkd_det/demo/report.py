"""The last stage: the table, ``results.json`` and ``report.html``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console

from ..files.whole import write_text
from ..machine import describe_machine
from ..reports.charts import charts, draw_lines
from ..reports.detections import Example
from ..reports.gallery import gallery, legend
from ..reports.page import definitions, page, paragraph, section, table
from ..trainings import Run
from ..trainings.history import read_history
from ..trainings.state import read_json, write_json
from .detections import choose_examples
from .figures import draw_ap
from .plan import DemoOptions
from .results import COLUMNS, DIGITS, Row, collect_rows, gain, show_table, summarise

TITLE = 'RdimKD on handwritten digits'
NAMES = {'plain': 'plain', 'rdimkd': 'RdimKD'}


def make_report(options: DemoOptions, runs: Sequence[Run], command: str, console: Console) -> None:
    """Print the table, and write the report unless the one of these runs exists.

    Args:
        options (DemoOptions): The demo's options.
        runs (Sequence[Run]): The demo's trainings, all finished.
        command (str): The demo's command line.
        console (Console): Where to print.
    """
    rows = collect_rows(runs)
    report, results = options.work_dir / 'report.html', options.work_dir / 'results.json'
    digest = _digest(runs)
    if not (report.is_file() and read_json(results).get('digest') == digest):
        provenance = {
            'date': datetime.now().astimezone().isoformat(timespec='seconds'),
            'command': command,
            'seeds': list(options.seeds),
            'machine': describe_machine(),
            'digest': digest,
        }
        examples = choose_examples(options.data, runs[1:3], console)
        write_text(report, build_page(rows, runs, examples, provenance))
        write_json(results, summarise(rows, provenance))  # last: its digest marks the report done
    show_table(rows, console)
    console.print(_verdict(rows), highlight=False, soft_wrap=True)
    console.print(f'Report: {report}', highlight=False, soft_wrap=True)


def _digest(runs: Sequence[Run]) -> str:
    """Identify these very trainings, not only their settings."""
    made = [f'{run.digest} {run.checkpoint.stat().st_mtime_ns}' for run in runs]
    return hashlib.sha256('\n'.join(made).encode()).hexdigest()


def build_page(
    rows: Sequence[Row], runs: Sequence[Run], examples: Sequence[Example], provenance: dict
) -> str:
    """Build the report as one HTML file.

    Args:
        rows (Sequence[Row]): Rows of the results table.
        runs (Sequence[Run]): The trainings, the teacher first.
        examples (Sequence[Example]): Val images to show.
        provenance (dict): Date, command, seeds and machine.

    Returns:
        str: Self-contained HTML.
    """
    seed = runs[1].seed
    facts = {
        'date': provenance['date'],
        'command': provenance['command'],
        'seeds of the students': ', '.join(map(str, provenance['seeds'])),
        **provenance['machine'],
    }
    return page(
        TITLE,
        [
            paragraph(_verdict(rows), css_class='verdict'),
            section('Results', _table(rows), paragraph(
                'AP is COCO AP, from 0 to 1, on the val images after the last epoch. Parameters '
                'are those of the detector as it is used; training time leaves out validation.')),
            section('Training', _charts(runs)),
            section('Detections', paragraph(
                legend(examples, f'the two students (seed {seed})')), gallery(examples, NAMES)),
            section('How this was made', definitions(facts)),
        ],
    )  # fmt: skip


def _verdict(rows: Sequence[Row]) -> str:
    difference = round(gain(rows), DIGITS)
    seeds = sum(row.kind == 'rdimkd' and row.seed is not None for row in rows)
    over = '' if seeds == 1 else f', in the mean of {seeds} seeds'
    student = 'The student that also learns from the teacher (RdimKD)'
    if difference:
        side = 'above' if difference > 0 else 'below'
        outcome = f'{student} ends {abs(difference):.{DIGITS}f} AP {side} the plain student{over}'
    else:
        outcome = f'{student} and the plain student end with equal AP{over}'
    return f'{outcome}; the two differ in the teacher only.'


def _table(rows: Sequence[Row]) -> str:
    classes = [
        row.kind + (' mean' if row.kind != 'teacher' and row.seed is None else '') for row in rows
    ]
    return table(COLUMNS, [row.cells for row in rows], classes)


def _charts(runs: Sequence[Run]) -> str:
    histories = [(run, read_history(run.work_dir)) for run in runs]
    (teacher, teacher_history), *students = histories
    lines = {
        kind: [history.ap_line for run, history in students if run.kind == kind]
        for kind in ('plain', 'rdimkd')
    }
    distilled = next(history for run, history in students if run.kind == 'rdimkd')
    levels = {_level_title(name): distilled.series(name) for name in distilled.losses()}
    ap = draw_ap(lines, teacher_history.metrics(teacher.epochs)['ap'])
    losses = draw_lines('loss', levels, 'iteration', 'distillation loss')
    of_seed = f'the RdimKD student (seed {runs[1].seed})'
    return charts(
        [
            (ap, 'AP of the students after each epoch.'),
            (losses, f'Distillation loss of {of_seed} at each level of the FPN.'),
        ]
    )


def _level_title(loss_name: str) -> str:
    tap, _, stride = loss_name.replace('loss_rdimkd_', '').rpartition('_s')
    return f'{tap}, stride {stride}'
