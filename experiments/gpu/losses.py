"""Times the losses alone, beside those of other distillations and reading both maps once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

from rdimkd_det.benchmark.steps import READ
from rdimkd_det.stopwatch import measure

from ..compare_losses import LAYOUTS, loss_maps, time_losses
from .task import Task, bar

NAMES = ('l2', 'l2-adapter', 'pkd', 'plain', 'standardize', 'plain-adapter', 'standardize-adapter')
# On contiguous maps: the largest share of another loss's time, as on a CPU (docs/performance.md).
LIMITS = {
    ('plain', 'pkd'): 0.35,
    ('standardize', 'pkd'): 0.6,
    ('plain-adapter', 'l2-adapter'): 0.8,
    ('standardize-adapter', 'l2-adapter'): 0.8,
}


def check(task: Task) -> Iterator[dict]:
    """Measure forward and backward pass in each memory layout of the teacher's maps."""
    subject = task.subject(1024)
    rounds, images = (3 if task.small else 50), subject.batch['inputs']
    report = {'shape': list(images[0].shape[1:]), 'batch': len(images), 'rounds': rounds}
    report.update(time_losses(subject, NAMES, rounds))
    maps = {layout: [*chain(*loss_maps(subject, layout))] for layout in LAYOUTS}
    reading = {lay: (lambda of=of: [it.sum() for it in of]) for lay, of in maps.items()}
    for layout, cost in measure(reading, rounds, subject.device).items():
        report['losses'][layout][READ] = asdict(cost)
    times = {name: cost['median'] for name, cost in report['losses']['contiguous'].items()}
    bars = [
        bar(f'{name} / {rival}', times[name] / times[rival], None if task.small else limit)
        for (name, rival), limit in LIMITS.items()
    ]
    bars += [
        bar(f'{name} / {READ}', times[name] / times[READ]) for name in ('plain', 'standardize')
    ]
    yield {**report, 'bars': bars}
