"""Two processes train like one, even with batches of different sizes."""

from __future__ import annotations

import copy
import os
from collections import Counter
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import reference
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from processes import run_distributed
from runs import distilled, fcos, load, run_config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rdimkd_det import RdimKDLoss
from rdimkd_det.commands import cli
from rdimkd_det.errors import TrainingInterruptedError

pytestmark = pytest.mark.slow
RANDOM = dict(type='RandomProjection', dim=8)
DDP = dict(device_ids=None, broadcast_buffers=False, find_unused_parameters=False)


def teacher_of(files: Path) -> dict:
    return {
        'config': str(files / 'teacher/teacher.py'),
        'checkpoint': str(files / 'teacher/teacher.pth'),
    }


# Whole trainings


def train_run(files: Path, work_dir: Path, world_size: int, normalize: str, **options) -> dict:
    """Return weights, adapters, bases and scales after four steps of four images in total."""
    model = distilled(fcos(norm_eval=True), teacher_of(files), normalize=normalize)
    cfg = run_config(files / 'data', work_dir, model, **options)
    cfg.train_dataloader.batch_size = 4 // world_size
    if world_size > 1:
        wrapper = dict(type='MMDistributedDataParallel', **DDP)
        cfg.merge_from_dict(dict(launcher='pytorch', model_wrapper_cfg=wrapper))
        cfg.strategy = dict(type='DDPStrategy', model_wrapper=wrapper)
    with mock.patch.dict(os.environ, LOCAL_RANK='0'):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        runner.train()
    checkpoint = load(work_dir / 'epoch_2.pth')
    # DDPStrategy saves the wrapper's names, which mmengine's loading strips.
    student = {key.removeprefix('module.'): v for key, v in checkpoint['state_dict'].items()}
    return {**student, **checkpoint['distill']}


@pytest.fixture(scope='module')
def of_one_process(files):
    """Return a function that trains in one process, each case once."""

    @cache
    def train_once(normalize: str, accumulative_counts: int) -> dict:
        counts = {'optim_wrapper.accumulative_counts': accumulative_counts}
        work_dir = files / f'{normalize}_{accumulative_counts}'
        return train_run(files, work_dir, 1, normalize, **counts)

    return train_once


@pytest.mark.parametrize(
    'normalize, options',
    [
        ('standardize', {}),
        ('teacher', {}),
        ('standardize', {'optim_wrapper.accumulative_counts': 2}),
        ('standardize', {'runner_type': 'FlexibleRunner'}),
    ],
    ids=['standardize', 'teacher', 'accumulation', 'flexible_runner'],
)
def test_train__four_steps_equal_one_process(files, of_one_process, tmp_path, normalize, options):
    """BatchNorm is in eval, because SyncBN does not work on a CPU."""
    results = run_distributed(
        lambda rank: train_run(files, tmp_path / 'run', 2, normalize, **options), tmp_path
    )
    expected = of_one_process(normalize, options.get('optim_wrapper.accumulative_counts', 1))
    found = results[0]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-4, equal_nan=True, msg=name
        )


# Batches of different size


class Network(nn.Module):
    """A student of one convolution, and its loss."""

    def __init__(self, normalize: str | None) -> None:
        super().__init__()
        self.student = nn.Conv2d(3, 4, 3, padding=1)
        self.loss = RdimKDLoss(RANDOM, 4, 9, num_levels=1, normalize=normalize)

    def forward(self, images: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return sum(self.loss([self.student(images)], [teacher]).values())


def gradients(network: nn.Module, images: torch.Tensor, teacher: torch.Tensor) -> dict:
    network(images, teacher).backward()
    return {name.removeprefix('module.'): p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize('normalize', [None, 'teacher', 'standardize'])
def test_uneven__last_batches(tmp_path, normalize):
    """Three images on one rank and one on the other.

    'standardize' gives the result of one process with all four. Otherwise, each rank's loss is the
    mean over its own images, and DDP takes the mean over the ranks, as for MMDetection's own
    losses; the scale of 'teacher' is that of all four.
    """
    network = Network(normalize).double()
    images, teacher = torch.randn(4, 3, 6, 5).double(), torch.randn(4, 9, 6, 5).double()
    teacher[3] = 5 * teacher[3] + 2
    parts = [slice(0, 3), slice(3, 4)]

    def on_rank(rank: int) -> tuple:
        wrapped = DistributedDataParallel(copy.deepcopy(network))
        found = gradients(wrapped, images[parts[rank]], teacher[parts[rank]])
        return found, wrapped.module.loss.teacher_variance

    results = run_distributed(on_rank, tmp_path)
    whole = gradients(copy.deepcopy(network), images, teacher)
    if normalize == 'standardize':
        expected = whole
    else:
        network.loss.eval()
        network.loss.teacher_variance.copy_(results[0][1])
        twins = [copy.deepcopy(network) for _ in parts]
        own = [gradients(twin, images[p], teacher[p]) for twin, p in zip(twins, parts)]
        expected = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
        assert not torch.allclose(expected['student.weight'], whole['student.weight'], rtol=0.01)
    for found, variance in results:
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-9, msg=name)
        if normalize == 'teacher':
            basis = network.loss.projections[0].basis.double()
            value = reference.teacher_variance(teacher, basis)
            torch.testing.assert_close(variance, torch.tensor([value], dtype=torch.float64))


# Exchanges between the ranks


def exchanges(model: nn.Module) -> Counter:
    """Count the collective operations of a training step by name."""
    network = MMDistributedDataParallel(model.train(), **DDP)
    with torch.profiler.profile() as profiler:
        data = model.data_preprocessor(random_batch(num_classes=3), True)
        model.parse_losses(network(**data, mode='loss'))[0].backward()
    names = [event.name for event in profiler.events()]
    return Counter(name for name in names if name.startswith('c10d::'))


@pytest.mark.parametrize(
    'normalize, expected',
    [
        ('standardize', {'c10d::allgather_': 1}),  # statistics of all three levels
        (None, {'c10d::allreduce_': 1}),  # whether any rank's losses are not finite
    ],
)
def test_step__exchanges_once_more_than_the_plain_student(files, tmp_path, normalize, expected):
    config = distilled(fcos(), teacher_of(files), projection=RANDOM, normalize=normalize)

    def on_rank(rank: int) -> list:
        plain = exchanges(MODELS.build(fcos()))
        model = MODELS.build(config)
        model.distill.finite.deferred = True  # as DistillHook has it
        return [dict(plain), dict(exchanges(model) - plain)]

    for plain, more in run_distributed(on_rank, tmp_path):
        assert plain['c10d::allreduce_'] > 0
        assert more == expected


# No unused parameter


def off_and_on(model: nn.Module, step: int) -> None:
    for part in model.distill.per_teacher:
        part.set_factor(step % 2)


def always_on(model: nn.Module, step: int) -> None:
    pass


@pytest.mark.parametrize(
    'weights, schedule',
    [
        ([{8: 1.0, 16: 0.0, 32: 0.5}], always_on),
        ([1.0], off_and_on),
        ([1.0, 0.5], off_and_on),
        ([1.0, 0.0], always_on),
        ([0.0], always_on),
    ],
    ids=['level_of_weight_0', 'schedule', 'two_teachers', 'teacher_of_weight_0', 'off'],
)
def test_unused_parameters__there_are_none(files, tmp_path, weights, schedule):
    """With find_unused_parameters=False, DDP raises in the step after one with unused ones."""
    loss = dict(type='RdimKDLoss', projection=RANDOM)
    teachers = [
        dict(teacher_of(files), losses=dict(neck=dict(loss, loss_weight=weight)))
        for weight in weights
    ]
    config = dict(distilled(fcos(), teachers[0]), teacher=teachers)

    def on_rank(rank: int) -> list:
        model = MODELS.build(config).train()
        network = MMDistributedDataParallel(model, **DDP)
        for step in range(3):
            schedule(model, step)
            data = model.data_preprocessor(random_batch(seed=rank, num_classes=3), True)
            model.parse_losses(network(**data, mode='loss'))[0].backward()
        return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]

    assert run_distributed(on_rank, tmp_path) == [[], []]


# The end of a command line


def threads() -> list[str]:
    """Return the names of this process's threads, those of C++ included; Linux only."""
    return [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs Linux')
@pytest.mark.parametrize('status', [0, 143])
def test_command_line__ends_gloos_threads(tmp_path, status):
    """A thread that releases a tensor while Python shuts down would abort the process."""

    def main():
        model = DistributedDataParallel(nn.Linear(2, 1))
        circle = [model]
        circle.append(circle)
        model(torch.ones(1, 2)).sum().backward()
        assert any('gloo' in name for name in threads())
        if status:
            raise TrainingInterruptedError('stopped by SIGTERM', status=status)

    def on_rank(rank):
        code = 0
        try:
            cli.run(main)
        except SystemExit as error:
            code = error.code
        return code, [name for name in threads() if 'gloo' in name]

    assert run_distributed(on_rank, tmp_path) == [(status, []), (status, [])]
