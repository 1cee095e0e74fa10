"""Check of the cost of a step: plain and distilled, its parts, memory and the floor."""

from __future__ import annotations

from collections.abc import Iterator

from rdimkd_det.benchmark.steps import DISTILLED, PLAIN, compare_with_floor, step_pieces
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.stopwatch import Cost, measure

from .task import Task, bar

TIME_LIMIT = 1.15  # of the plain step
MEMORY_LIMIT = 1.05  # of plain training, teacher in half precision, and its maps


def check(task: Task) -> Iterator[dict]:
    """Measure the pieces of the flagship's step at 1024x1024; on a CPU the bars are for show."""
    subject = task.subject(1024)
    rounds = 3 if task.small else 20
    images = subject.batch['inputs']
    yield {'shape': list(images[0].shape[1:]), 'batch': len(images), 'rounds': rounds}
    costs = measure(step_pieces(subject), rounds, subject.device)
    report = compare_with_floor(costs)
    memory = memory_ratio(subject, costs)
    limits = (None, None) if task.small else (TIME_LIMIT, MEMORY_LIMIT)
    yield {**report, 'weights': subject.num_bytes(),
           'bars': [bar('distilled step / plain step', report['distilled_to_plain'], limits[0]),
                    bar('memory / (plain + teacher + its maps)', memory, limits[1]),
                    bar('distilled step / floor', report['distilled_to_floor'])]}  # fmt: skip


def memory_ratio(subject: Subject, costs: dict[str, Cost]) -> float:
    """Return the memory of distilled training, in that of its parts.

    The parts are plain training, the teacher's weights in half precision, and the maps of its neck.
    The optimizer's state, which both have, is left out.
    """
    weights = subject.num_bytes()
    plain = weights['student'] + costs[PLAIN].memory
    distilled = weights['student'] + weights['teacher'] + costs[DISTILLED].memory
    network = subject.model.distill.teacher.load_plain()
    half = 2 * sum(value.numel() for value in network.state_dict().values())
    maps = sum(it.nbytes for of_tap in subject.teacher_maps().values() for it in of_tap)
    return distilled / (plain + half + maps)
