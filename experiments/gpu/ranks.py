"""Check of distributed training: a process group of one, NCCL on a GPU, gloo on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from torch import distributed

from .task import Task, bar, difference


def check(task: Task) -> Iterator[dict]:
    """Communicate, then compare the losses of a distilled step with those without a group."""
    subject = task.subject(512)
    model, backend = subject.model, 'gloo' if task.small else 'nccl'
    wrapper = build_optim_wrapper(model, subject.cfg.optim_wrapper)
    expected = model.train_step(subject.batch, wrapper)
    meeting = Path(task.folder, 'rendezvous').absolute().as_uri()
    distributed.init_process_group(backend, init_method=meeting, rank=0, world_size=1)
    numbers = torch.arange(1000.0, device=task.device)
    summed, gathered = numbers.clone(), [torch.zeros_like(numbers)]
    distributed.all_reduce(summed)
    distributed.all_gather(gathered, numbers)
    for name, value in (('all_reduce', summed), ('all_gather', gathered[0])):
        yield {'bars': [bar(f'{backend}, {name}', difference(value, numbers), 0)]}
    parallel = MMDistributedDataParallel(
        model, device_ids=None if task.small else [0], broadcast_buffers=False
    )
    found = parallel.train_step(subject.batch, wrapper)
    worst = max(difference(found[key], expected[key]) for key in expected)
    yield {'bars': [bar('losses under DDP, against none', worst, 1e-2)]}
    distributed.destroy_process_group()
