"""Checks that the teacher gets the input that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from torch import nn

from ..distiller.distillation import Distillation
from ..options import explain
from .input_evidence import InputScore, better_input, compare_inputs, hardly_trained
from .input_formats import InputFormat
from .report import Report

# Divergence above which the configured input is not that of the teacher's training, even if no
# other input fits better.
FAR = 1.0


def check_teacher_input(
    part: Distillation,
    student_preprocessor: nn.Module,
    batches: Sequence[dict],
    detector: nn.Module | None,
    labels: Mapping[int, int] | None,
    report: Report,
    topic: str,
) -> InputFormat | None:
    """Report whether another input than the configured one fits better, and return it."""
    if hardly_trained(part.teacher.load_plain()):
        report.ok(
            topic,
            'not judged: its BatchNorm layers have seen a few batches only, so that neither their '
            'statistics nor its loss tell its input',
        )
        return None
    unmeasured = ''
    try:
        scores = compare_inputs(part, student_preprocessor, batches, detector, labels)
    except Exception as error:  # the loss may need what the data lack, or more memory
        unmeasured = f'; its own loss could not be measured: {explain(error)}'
    if unmeasured:  # outside of the except block, whose exception keeps the failed step's maps
        scores = compare_inputs(part, student_preprocessor, batches)
    report.figures.setdefault('inputs', {})[topic] = {
        score.name: {
            key: None if value == inf else value  # JSON has no infinity
            for key, value in vars(score).items()
            if key not in ('name', 'format')
        }
        for score in scores
    }
    configured, better = scores[0], better_input(scores)
    if configured.divergence is None and configured.loss is None:
        without = 'the teacher has no BatchNorm statistics of its training'
        if unmeasured:
            report.warning(
                topic,
                f'cannot be checked: {without}{unmeasured}',
                'run with --eval-teacher, and compare the AP with what its authors give',
            )
        else:
            report.ok(topic, f'not judged: {without}, and knows none of the classes')
    elif better is not None:
        swapped = better.format == configured.format.swapped()
        what = 'swapped channels' if swapped else f"another normalisation, '{better.name}'"
        setting = f'bgr_to_rgb={better.format.rgb}' if swapped else better.format.as_config()
        report.error(
            topic,
            f'looks like {what}: {_figures(better)}; as configured: {_figures(configured)}'
            f'{unmeasured}',
            f'set {setting} in the data_preprocessor of the teacher config, '
            f'{part.teacher.source.name}',
        )
    elif configured.divergence is not None and configured.divergence > FAR:
        report.warning(
            topic,
            f'its activations are far from those of its training ({_figures(configured)}): images '
            f'of another kind, or an unusual input{unmeasured}',
            f"compare data_preprocessor in {part.teacher.source.name} with the teacher's training, "
            f'and run with --eval-teacher',
        )
    else:
        text = f'none of {len(scores) - 1} others fits better ({_figures(configured)})'
        if unmeasured:  # swapped channels may leave no trace in the statistics
            report.warning(topic, text + unmeasured, 'run with --eval-teacher, which compares APs')
        else:
            report.ok(topic, text)
    return better and better.format


def _figures(score: InputScore) -> str:
    figures = {'divergence': score.divergence, "the teacher's loss": score.loss}
    return ', '.join(f'{name} {value:.3g}' for name, value in figures.items() if value is not None)
