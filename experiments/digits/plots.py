"""Results of the experiments on digits as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from rdimkd_det.files.atomic import written_whole

from ..summary import Outcome, mean_and_error
from .table import DIM, DIMS, WEIGHTS

REFERENCES = ('plain', 'pkd')


def draw(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """Draw AP over d, over the loss weight and over the epochs, side by side in one picture.

    Args:
        outcomes (Mapping[str, Outcome]): Name of an experiment to its results.
        path (Path): The file to write, in the format of its suffix.
    """
    with plt.rc_context({'svg.hashsalt': 'rdimkd_det', 'axes.grid': True, 'grid.alpha': 0.3}):
        figure, (dims, weights, epochs) = plt.subplots(
            1, 3, figsize=(13, 4), layout='constrained', sharey=True
        )
        for letter in 'pr':
            names = {d: f'rdimkd_{letter}' + ('' if d == DIM else f'_d{d}') for d in DIMS}
            _line(dims, outcomes, names, f'RdimKD-{letter.upper()}')
        for name, label in (('rdimkd_p', 'RdimKD-P, d = 64'), ('pkd', 'PKD')):
            names = {w: name + ('' if w == 1.0 else f'_w{w:g}') for w in WEIGHTS}
            _line(weights, outcomes, names, label)
        for name in ('plain', 'pkd', 'rdimkd_p', 'rdimkd_r', 'rdimkd_a'):
            _over_epochs(epochs, outcomes[name])
        dims.set(xlabel='directions d', ylabel='AP', xscale='log')
        dims.set_xticks(DIMS, DIMS)
        weights.set(xlabel='loss weight', xscale='log')
        weights.set_xticks(WEIGHTS, WEIGHTS)
        epochs.set(xlabel='epoch')
        for axes in (dims, weights):
            axes.minorticks_off()
            _references(axes, outcomes)
        for axes in (dims, weights, epochs):
            if axes.has_data():
                axes.legend(fontsize=8)
        with written_whole(path) as file:
            figure.savefig(file, format=path.suffix[1:], metadata={'Date': None})
        plt.close(figure)


def _line(axes: Axes, outcomes: Mapping[str, Outcome], names: Mapping, label: str) -> None:
    points = {x: [*outcomes[name].scores().values()] for x, name in names.items()}
    points = {x: mean_and_error(values) for x, values in points.items() if values}
    means = [mean for mean, _ in points.values()]
    errors = [error or 0.0 for _, error in points.values()]
    axes.errorbar(list(points), means, errors, marker='o', capsize=3, label=label)


def _references(axes: Axes, outcomes: Mapping[str, Outcome]) -> None:
    for name, style in zip(REFERENCES, (':', '--')):
        mean, _ = mean_and_error([*outcomes[name].scores().values()])
        if mean is not None:
            axes.axhline(mean, color='gray', linestyle=style, linewidth=1, label=name)


def _over_epochs(axes: Axes, outcome: Outcome) -> None:
    curves: Sequence[Sequence[float]] = [it['ap_by_epoch'] for it in outcome.results.values()]
    if curves:
        means = [mean_and_error(values)[0] for values in zip(*curves)]
        axes.plot(range(1, len(means) + 1), means, marker='o', label=outcome.experiment.name)
