"""The HTML page of tools/report.py: trainings side by side, each compared with the first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from .charts import charts, draw_lines
from .config_diff import differing_settings
from .detections import Example
from .evaluation import Evaluation
from .gallery import gallery, legend
from .page import definitions, folded, page, paragraph, section, table
from .runs import TrainedRun

COLUMNS = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
TEACHER_COLUMNS = ('teacher', 'gap closed')
SHOWN_CLASSES = 10
MINUS = '\u2212'
SCORES = (
    "COCO AP, from 0 to 1, on each run's own val data. Objects are small below 32 x 32 pixels and "
    'large above 96 x 96. A dash: there are no such objects, or it was not measured.'
)
OF_TEACHER = (
    "'teacher' is the AP of a run's (best) teacher on the same data, as the student sees them; "
    "'gap closed' is the share of the way to it from the AP of the first run without a teacher."
)
SHARE = dict(ylim=(0, 1))
# At the end of the name of a scalar of one level, e.g. 'loss_rdimkd_neck_s8'.
OF_A_LEVEL = re.compile(r'_s\d+$')


def comparison_page(
    runs: Sequence[TrainedRun],
    evaluations: Mapping[str, Evaluation],
    examples: Sequence[Example],
    remarks: Sequence[str],
    facts: Mapping[str, str],
    title: str | None = None,
) -> str:
    """Build the report as one self-contained HTML file.

    The other runs are compared with the first. ``evaluations`` are by name, for the runs that have
    one; ``remarks`` say what is missing, and why; ``facts`` how the report was made. The title
    defaults to the names of the runs.
    """
    names = [run.name for run in runs]
    explanations = [SCORES]
    if any(run.history.teacher_ap is not None for run in runs):
        explanations.append(OF_TEACHER)
    sections = [
        *map(paragraph, remarks),
        section('Results', scores_table(runs, evaluations), *map(paragraph, explanations)),
        section('Training', charts(training_charts(runs))),
    ]
    if evaluations:
        sections.append(section('AP by class', classes_table(evaluations)))
    if examples:
        shown = {name: name for name in evaluations}
        sections.append(
            section('Detections', paragraph(legend(examples, 'the runs')), gallery(examples, shown))
        )
    if len(runs) > 1:
        sections.append(section('Where the configs differ', settings_list(runs)))
    sections.append(section('How this was made', definitions(facts)))
    title = title or (' and '.join(names) if len(names) < 3 else f'{len(names)} runs')
    return page(title, sections)


def scores_table(runs: Sequence[TrainedRun], evaluations: Mapping[str, Evaluation]) -> str:
    """Return a table with one row per run, and below each later run its gain over the first."""
    scores = [_scores(run, evaluations.get(run.name)) for run in runs]
    rows, classes = [], []
    plain = next((own.get('AP') for run, own in zip(runs, scores) if not run.distilled), None)
    with_teacher = any(run.history.teacher_ap is not None for run in runs)
    for run, own in zip(runs, scores):
        when = _when(run, evaluations.get(run.name))
        cells = [run.name, when, *(_score(own.get(name)) for name in COLUMNS)]
        if with_teacher:
            cells += [_score(run.history.teacher_ap), _closed(run, own.get('AP'), plain)]
        rows.append(cells)
        classes.append('')
        if own is not scores[0]:
            changes = [_change(own.get(name), scores[0].get(name)) for name in COLUMNS]
            rows.append((f'over {runs[0].name}', '', *changes, *[''] * (2 * with_teacher)))
            classes.append('change')
    return table(('', 'after', *COLUMNS, *(TEACHER_COLUMNS if with_teacher else ())), rows, classes)


def _closed(run: TrainedRun, ap: float | None, plain: float | None) -> str:
    """Return the share of the gap between the plain student's AP and the teacher's, in percent."""
    teacher = run.history.teacher_ap
    if None in (ap, plain, teacher) or teacher <= plain:
        return _score(None)
    return f'{100 * (ap - plain) / (teacher - plain):.0f} %'.replace('-', MINUS)


def _when(run: TrainedRun, evaluation: Evaluation | None) -> str:
    """Return the epoch or iteration that the scores belong to, e.g. 'epoch 6'."""
    if evaluation is not None and run.checkpoint is not None:
        return run.checkpoint.stem.replace('_', ' ')
    return f'{run.step_name} {max(run.history.val)}' if run.history.val else '\u2013'


def _scores(run: TrainedRun, evaluation: Evaluation | None) -> dict[str, float]:
    if evaluation is not None:
        return evaluation.scores
    return {name.upper(): score for name, score in (run.history.metrics() or {}).items()}


def classes_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return a table of AP by class, the classes with the greatest change first."""
    (first, base), *others = evaluations.items()
    columns = ['class', first]
    for name, _ in others:
        columns += [name, 'change']
    spread = {
        name: max((abs(it.classes[name] - ap) for _, it in others if name in it.classes), default=0)
        for name, ap in base.classes.items()
    }
    rows = []
    for name in sorted(spread, key=lambda name: -spread[name]):
        cells = [name, _score(base.classes[name])]
        for _, other in others:
            own = other.classes.get(name)
            cells += [_score(own), _change(own, base.classes[name])]
        rows.append(cells)
    shown = table(columns, rows[:SHOWN_CLASSES])
    if len(rows) > SHOWN_CLASSES:
        rest = table(columns, rows[SHOWN_CLASSES:])
        shown += folded(f'{len(rows) - SHOWN_CLASSES} more classes', rest)
    return shown


def training_charts(runs: Sequence[TrainedRun]) -> list[tuple[str, str]]:
    """Draw AP, loss, distillation losses, explained shares and learning rate, with captions."""
    drawings = []
    ap = {run.name: run.history.ap_line for run in runs}
    ap = {name: line for name, line in ap.items() if line[0]}
    for run in runs:
        if run.name in ap and (teacher := run.history.teacher_ap) is not None:
            steps = ap[run.name][0]
            ap[f'teacher of {run.name}'] = [steps[0], steps[-1]], [teacher, teacher]
    if ap:
        steps = ' or '.join(dict.fromkeys(run.step_name for run in runs if run.name in ap))
        drawings.append((draw_lines('ap', ap, steps, 'AP on val'), 'AP at each validation.'))

    def add(key: str, caption: str, **axes) -> None:
        lines = {run.name: run.history.series(key) for run in runs}
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            name = key.replace('/', '_')
            drawings.append((draw_lines(name, lines, 'iteration', key, **axes), caption))

    add('loss', 'Sum of all losses, those of distillation included.')
    for number, run in enumerate(runs):
        drawings += _distillation_charts(run, number)
    add('lr', 'Learning rate.')
    return drawings


def _distillation_charts(run: TrainedRun, number: int) -> list[tuple[str, str]]:
    drawings = []
    for prefix, ylabel, caption, axes in (
        ('loss_', 'distillation loss', 'distillation loss of each level.', {}),
        ('explained_in_', 'explained', "teacher's variance explained in the subspace ...", SHARE),
        ('explained_out_', 'explained', '... and outside of it, where the student is free.', SHARE),
    ):
        names = [name for name in run.history.losses(prefix) if OF_A_LEVEL.search(name)]
        labels = {name: name.removeprefix(prefix).removeprefix('rdimkd_') for name in names}
        lines = {label: run.history.series(name) for name, label in labels.items()}
        if lines:
            svg = draw_lines(f'{prefix}{number}', lines, 'iteration', ylabel, **axes)
            drawings.append((svg, f'{run.name}: {caption}'))
    return drawings


def settings_list(runs: Sequence[TrainedRun]) -> str:
    """Return HTML with the settings that differ and their value in each run."""
    settings = differing_settings([run.config for run in runs])
    if not settings:
        return paragraph('The configs are equal.')
    items = []
    for key, values in settings.items():
        own = definitions({run.name: value for run, value in zip(runs, values)})
        items.append(f'<div class="setting"><code>{escape(key)}</code>{own}</div>')
    return ''.join(items)


def _score(score: float | None) -> str:
    return '\u2013' if score is None else f'{score:.3f}'


def _change(score: float | None, base: float | None) -> str:
    if score is None or base is None:
        return ''
    change = round(score - base, 3)
    sign = '+' if change > 0 else MINUS if change < 0 else ''
    return f'{sign}{abs(change):.3f}'
