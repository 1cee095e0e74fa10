"""Trainings that are cut off, and what is left of them."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from runs import load

import rdimkd_det.files.atomic
from rdimkd_det.training.guard import latest_checkpoint

EPOCHS, BATCHES = 3, 4  # iterations: 12


class Noise(Hook):
    """Draws from every generator in the training process, as dropout and mixup do."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for image in data_batch['inputs']:
            image //= 2
            image += torch.randint(10, image.shape).byte() + random.randrange(10)


class Kill(Hook):
    """Kills the process at an iteration: before it, after it, or half-way through saving it."""

    priority = 'LOWEST'

    def __init__(self, iteration, when):
        self.iteration, self.when = iteration, when

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            if self.when == 'before':
                os.kill(os.getpid(), signal.SIGKILL)
            if self.when == 'saving':
                rdimkd_det.files.atomic.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration and self.when == 'after':
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(function, *args):
    """Run a function in a forked process; return the exit status."""

    def run():
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        function(*args)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    # `join` would also wait for orphaned data loader workers, which take 5 seconds to notice.
    deadline = time.monotonic() + 120
    while (status := process.exitcode) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()  # one that hangs
    return status


def start(config, *hooks, resume=False):
    """Train, or resume from the newest intact checkpoint, as tools/train.py does."""
    if resume:
        path, _ = latest_checkpoint(config.work_dir)
        config.resume, config.load_from = True, path
    runner = Runner.from_cfg(config)
    for hook in (Noise(), *hooks):
        runner.register_hook(hook)
    runner.train()


def final(config):
    """Return weights, distillation state and momenta of a finished training."""
    checkpoint = load(Path(config.work_dir) / f'iter_{EPOCHS * BATCHES}.pth')
    momenta = checkpoint['optimizer']['state']
    return {
        **checkpoint['state_dict'],
        **{f'distill.{key}': value for key, value in checkpoint['distill'].items()},
        **{f'momentum.{key}': value['momentum_buffer'] for key, value in momenta.items()},
    }


class Stop(Exception):
    """Ends a training abruptly, as a kill does, but leaves the process alive."""


class StopAfter(Hook):
    """Stops after an iteration, once its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise Stop


def distributed(config):
    """Adapt the config to two processes with different random states."""
    config.launcher = 'pytorch'
    config.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
    )
    config.randomness.diff_rank_seed = True
    config.train_dataloader.batch_size = 1
    return config


class Watch(Hook):
    """Records iterations with their indices in the epoch, and counts validations."""

    def __init__(self):
        self.seen, self.validations = [], 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append((runner.iter, batch_idx))

    def before_val_epoch(self, runner):
        self.validations += 1
