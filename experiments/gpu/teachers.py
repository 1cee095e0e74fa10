"""Check of the teacher's options for speed: its maps and its time with each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from rdimkd_det.stopwatch import measure
from rdimkd_det.teacher import DetectorSource, Teacher
from rdimkd_det.teacher.acceleration import Acceleration

from .task import Task, bar, difference, reason

PLAIN = dict(fuse=False, channels_last=False, precision='fp32')
# Options, and how far they may move the maps. Last what takes longest.
VARIANTS = {
    'fused': (dict(PLAIN, fuse=True), 1e-4),
    'channels_last': (dict(PLAIN, channels_last=True), 1e-4),
    'own_stream': (dict(PLAIN, own_stream=True), 1e-4),
    'bf16': (dict(precision='bf16'), 5e-2),
    'fp16': (dict(precision='fp16'), 1e-2),
    'compile': (dict(PLAIN, compile=True), 1e-4),
}


def check(task: Task) -> Iterator[dict]:
    """Compare the maps of each variant with those of the plain teacher."""
    torch.backends.cudnn.allow_tf32 = False
    variants, device = dict(VARIANTS), torch.device(task.device)
    cfg = task.pair()
    if task.small:  # fp16 needs a GPU, and compiling takes minutes on a CPU, where the tests do it
        del variants['fp16'], variants['compile']
    options = cfg.model.teacher
    side = 96 if task.small else 1024
    images = torch.randn(2, 3, side, side, device=device)

    def teacher(**acceleration: object) -> Teacher:
        source = DetectorSource(options.config, options.checkpoint)
        return Teacher(source, ['neck'], Acceleration(**acceleration))

    def maps(network: Teacher) -> list[torch.Tensor]:
        found = network(images)
        network.wait(found)
        return found['neck']

    plain = teacher(**PLAIN)
    expected = maps(plain)
    times = {'plain': asdict(measure({'': lambda: maps(plain)}, 5, device)[''])}
    for name, (acceleration, limit) in variants.items():
        try:
            network = teacher(**acceleration)
            worst = max(map(difference, maps(network), expected))
            cost = measure({'': lambda network=network: maps(network)}, 5, device)['']
        except Exception as error:  # e.g. compile without a C++ compiler
            yield {'bars': [bar(name, None, limit, error=reason(error))]}
            continue
        times[name] = asdict(cost)
        yield {'times': times, 'bars': [bar(f'{name}, maps against plain', worst, limit)]}
