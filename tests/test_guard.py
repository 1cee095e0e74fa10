"""Trainings that are killed, stopped or damaged, and how they resume."""

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.registry import HOOKS, LOOPS, MODELS
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from processes import run_distributed
from runs import (
    REPOSITORY,
    assert_equal,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    write_data,
    write_teacher,
)

import rdimkd_det.files.whole
from rdimkd_det import ConfigError
from rdimkd_det.distiller import distilled_student
from rdimkd_det.guard import guard, latest_checkpoint
from rdimkd_det.guard.saving import is_intact
from rdimkd_det.guard.signals import StopRequest

EPOCHS, BATCHES = 3, 4  # iterations: 12


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with the data set and the teacher."""
    folder = tmp_path_factory.mktemp('files')
    write_data(folder / 'data')
    write_teacher(folder / 'teacher')
    return folder


@pytest.fixture
def config(files, tmp_path):
    """Make the config of a run that draws random numbers and saves at every iteration."""

    def config(name='run', num_workers=0, persistent=False, model=None, **overrides):
        teacher = dict(
            config=str(files / 'teacher/teacher.py'), checkpoint=str(files / 'teacher/teacher.pth')
        )
        options = {
            'train_dataloader.dataset.pipeline.3.prob': 0.5,
            'train_dataloader.batch_size': 8 // BATCHES,
            'train_dataloader.num_workers': num_workers,
            'train_dataloader.persistent_workers': persistent,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.by_epoch': False,
            'default_hooks.checkpoint.max_keep_ckpts': 2,
            **overrides,
        }
        model = model or distilled(fcos(), teacher)
        return run_config(files / 'data', tmp_path / name, model, EPOCHS, **options)

    return config


class Noise(Hook):
    """Draws from every generator in the training process, as dropout and mixup do."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for image in data_batch['inputs']:
            image //= 2
            image += torch.randint(10, image.shape).byte() + random.randrange(10)


@HOOKS.register_module()
class KillWorker(Hook):
    """Kills a worker of the data loader at the second iteration."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()


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
                rdimkd_det.files.whole.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

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
    process.join(timeout=120)
    status = process.exitcode
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


# Kills

LOADERS = [
    pytest.param(0, False, id='in_process'),
    pytest.param(2, False, id='workers'),
    pytest.param(3, True, id='persistent_workers'),
]


@pytest.mark.parametrize(('num_workers', 'persistent'), LOADERS)
def test_killed__resumes_to_the_bit(config, num_workers, persistent):
    options = dict(num_workers=num_workers, persistent=persistent)
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0
    kills = ((3, 'after'), (5, 'saving'), (8, 'after'), (11, 'before'), (12, 'after'))
    for number, (iteration, when) in enumerate(kills):
        kill = Kill(iteration, when)
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


def test_killed__twice_before_each_worker_has_given_a_batch(config):
    whole, killed = (config(name, num_workers=3, persistent=True) for name in ('whole', 'killed'))
    assert in_child(start, whole) == 0
    for resume, iteration in enumerate((BATCHES + 1, BATCHES + 2)):
        kill = Kill(iteration, 'after')
        status = in_child(lambda kill=kill, resume=resume: start(killed, kill, resume=resume > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


@pytest.mark.parametrize('by_epoch', [False, True])
def test_killed__around_a_switch_of_the_pipeline(config, by_epoch):
    """The hook restarts persistent workers once, at the start of the second epoch."""

    def switching(name):
        options = {'default_hooks.checkpoint.by_epoch': by_epoch}
        run = config(name, num_workers=2, persistent=True, **options)
        pipeline = run.train_dataloader.dataset.pipeline
        hook = dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=pipeline)
        run.custom_hooks.append(hook)
        return run

    def end(run):
        return load(latest_checkpoint(run.work_dir)[0])['state_dict']

    whole, killed = switching('whole'), switching('killed')
    assert in_child(start, whole) == 0
    for number, iteration in enumerate([5, 9]):
        kill = Kill(iteration, 'before' if by_epoch else 'after')
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(end(whole), end(killed))


@pytest.mark.slow
def test_killed__twenty_times_in_a_row(config):
    whole, killed = config('whole'), config('killed')
    assert in_child(start, whole) == 0
    draw = random.Random(0)
    done = 0
    for number in range(20):
        kill = Kill(min(done + draw.randint(1, 2), 12), draw.choice(['before', 'after', 'saving']))
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status in (-signal.SIGKILL, 0)
        path, _ = latest_checkpoint(killed.work_dir)
        reached = load(path)['meta']['iter'] if path else 0
        assert reached >= done  # never less than before
        done = reached
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


def test_killed__iteration_based_loop(config):
    whole, killed = config('whole'), config('killed')
    for each in (whole, killed):
        each.train_cfg = dict(type='IterBasedTrainLoop', max_iters=EPOCHS * BATCHES, val_interval=4)
        each.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    assert in_child(start, whole) == 0
    for number, iteration in enumerate([4, 7]):
        kill = Kill(iteration, 'after')
        status = in_child(lambda kill=kill, number=number: start(killed, kill, resume=number > 0))
        assert status == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


def test_killed__between_two_sizes_of_a_batch_augmentation(config):
    """YOLOX's draws a size, for the next ten iterations by default."""
    augment = dict(type='BatchSyncRandomResize', random_size_range=(96, 128), interval=3)
    options = {'model.student.data_preprocessor.batch_augments': [augment]}
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0
    assert in_child(lambda: start(killed, Kill(7, 'after'))) == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    assert_equal(final(whole), final(killed))


@LOOPS.register_module()
class OwnLoop(IterBasedTrainLoop):
    """A user's own loop, which shares only what hooks see with mmengine's loops."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = self.__dict__.pop('dataloader_iterator')

    def run(self):
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        while self._iter < self._max_iters:
            self.run_iter(next(self.batches))
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')


def test_resume__in_a_loop_of_another_kind(config):
    run = config()
    run.train_cfg = dict(type='OwnLoop', max_iters=EPOCHS * BATCHES)
    run.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    assert in_child(lambda: start(run, Kill(7, 'after'))) == -signal.SIGKILL
    watch = Watch()
    start(run, watch, resume=True)
    assert [iteration for iteration, _ in watch.seen] == [7, 8, 9, 10, 11]
    log = max(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'OwnLoop is a custom train loop' in log


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


def test_killed__two_processes(config, tmp_path):
    whole, killed = distributed(config('whole')), distributed(config('killed'))

    def run(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        start(whole)
        with pytest.raises(Stop):
            start(killed, StopAfter(6))
        torch.distributed.barrier()  # until the checkpoint is there
        start(killed, resume=True)

    run_distributed(run, tmp_path)
    assert_equal(final(whole), final(killed))
    first, second = load(Path(killed.work_dir) / f'iter_{EPOCHS * BATCHES}.pth')['resume']
    assert (first['now']['torch'] != second['now']['torch']).any()


def test_killed__between_epochs_and_in_validation(config):
    """With checkpoints only after epochs, a validation that was cut off is repeated."""
    options = {'default_hooks.checkpoint.by_epoch': True, 'train_cfg.val_interval': 1}
    whole, killed = config('whole', **options), config('killed', **options)
    assert in_child(start, whole) == 0

    class KillInValidation(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if runner.epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: start(killed, KillInValidation())) == -signal.SIGKILL
    assert in_child(lambda: start(killed, resume=True)) == 0
    ends = [load(Path(each.work_dir) / f'epoch_{EPOCHS}.pth') for each in (whole, killed)]
    assert_equal(*(end['state_dict'] for end in ends))
    validated = [
        json.loads(line)['step']
        for path in sorted(Path(killed.work_dir).glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
        if 'bbox_mAP' in line
    ]
    assert validated == [1, 2, 3]


def test_resume__with_other_workers_still_sees_the_right_data(config):
    """Another number of workers changes the augmentations, but not the order of images."""
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            ids = [sample.img_id for sample in data_batch['data_samples']]
            seen.append((runner.iter, batch_idx, ids))

    start(config('whole'), Watch())
    whole, seen = seen, []
    killed = config('killed')
    assert in_child(lambda: start(killed, Kill(6, 'after'))) == -signal.SIGKILL
    killed.train_dataloader.num_workers = 2
    start(killed, Watch(), resume=True)
    assert seen == whole[6:]


class Watch(Hook):
    """Records iterations with their indices in the epoch, and counts validations."""

    def __init__(self):
        self.seen, self.validations = [], 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen.append((runner.iter, batch_idx))

    def before_val_epoch(self, runner):
        self.validations += 1


def edit_resume_entry(path, edit):
    checkpoint = load(path)
    checkpoint['resume'] = edit(checkpoint['resume'])
    torch.save(checkpoint, path)


def as_earlier_versions_wrote(states):
    return [
        {key: value for key, value in state.items() if key not in ('batches', 'epoch_length')}
        for state in states
    ]


def test_resume__after_a_best_checkpoint_validates_no_second_time(config):
    options = {'default_hooks.checkpoint.by_epoch': True, 'train_cfg.val_interval': 1}
    run = config(**{**options, 'default_hooks.checkpoint.save_best': 'coco/bbox_mAP'})
    assert in_child(lambda: start(run, Kill(5, 'before'))) == -signal.SIGKILL
    assert list(Path(run.work_dir).glob('best_*.pth'))
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.validations == 2


@pytest.mark.parametrize('edit', [list, as_earlier_versions_wrote])
@pytest.mark.parametrize('num_images', [2, 4, 1])
def test_resume__with_epochs_of_another_length_drops_none(config, edit, num_images):
    """The batch size, or number of GPUs, changes between two epochs."""
    run = config(**{'default_hooks.checkpoint.by_epoch': True, 'train_cfg.max_epochs': 1})
    start(run)
    edit_resume_entry(Path(run.work_dir) / 'epoch_1.pth', edit)
    run.train_dataloader.batch_size = num_images
    seen = []
    for max_epochs in (2, 3):
        run.train_cfg.max_epochs = max_epochs
        watch = Watch()
        start(run, watch, resume=True)
        seen += watch.seen
    each = range(8 // num_images)
    assert seen == list(zip(range(4, 4 + 2 * len(each)), [*each, *each]))


@pytest.mark.parametrize('edit', [list, as_earlier_versions_wrote])
def test_resume__within_an_epoch_of_another_length_begins_it_anew(config, edit):
    run = config(**{'train_cfg.val_interval': 1})
    assert in_child(lambda: start(run, Kill(7, 'after'))) == -signal.SIGKILL
    edit_resume_entry(Path(run.work_dir) / 'iter_7.pth', edit)
    run.train_dataloader.batch_size = 4
    run.train_cfg.max_epochs = 2
    watch = Watch()
    start(run, watch, resume=True)
    log = max(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'stands at batch 3 of an epoch of another length (now it is 2)' in log
    assert watch.seen == [(7, 0), (8, 1)]
    assert watch.validations == 1


def test_resume__of_an_epoch_that_is_over_trains_no_more_of_it(config):
    run = config(**{'train_cfg.val_interval': 1})
    assert in_child(lambda: start(run, Kill(4, 'after'))) == -signal.SIGKILL
    run.train_dataloader.batch_size = 1
    run.train_cfg.max_epochs = 2
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.seen == [(4 + index, index) for index in range(8)]
    assert watch.validations == 2


def test_resume__of_earlier_versions_goes_on_in_the_epoch(config):
    whole, killed = config('whole'), config('killed')
    start(whole)
    assert in_child(lambda: start(killed, Kill(7, 'after'))) == -signal.SIGKILL
    edit_resume_entry(Path(killed.work_dir) / 'iter_7.pth', as_earlier_versions_wrote)
    start(killed, resume=True)
    assert_equal(final(whole), final(killed))


@pytest.mark.parametrize('iteration', [7, 8])
def test_resume__with_another_number_of_processes_keeps_the_place(config, iteration):
    """Both within an epoch and before a validation that was cut off."""
    by_epoch = iteration == 8
    run = config(**{'train_cfg.val_interval': 1, 'default_hooks.checkpoint.by_epoch': by_epoch})
    kill = Kill(iteration + 1, 'before')
    assert in_child(lambda: start(run, kill)) == -signal.SIGKILL
    path = latest_checkpoint(run.work_dir)[0]

    def of_two_processes(states):
        return [{**states[0], 'validated': False}] * 2

    edit_resume_entry(Path(path), of_two_processes)
    watch = Watch()
    start(run, watch, resume=True)
    assert watch.seen == [(index, index % 4) for index in range(iteration, 12)]
    assert watch.validations == 2


def test_resume__never_runs_text_of_the_checkpoint(config, tmp_path):
    run = config()
    start(run)
    path = Path(run.work_dir) / 'iter_12.pth'
    checkpoint = load(path)
    checkpoint['meta']['config'] = f"open({str(tmp_path / 'ran')!r}, 'w')"
    torch.save(checkpoint, path)
    start(run, resume=True)
    assert not (tmp_path / 'ran').exists()


# Checkpoint files


def test_checkpoint__truncated_newest_is_passed_over(config):
    run = config()
    start(run)
    run.dump(Path(run.work_dir) / 'config.py')
    newest, before = (Path(run.work_dir) / f'iter_{number}.pth' for number in (12, 11))
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert latest_checkpoint(run.work_dir) == (str(before), [str(newest)])
    call_tool('train.py', Path(run.work_dir) / 'config.py', '--resume')
    log = max(Path(run.work_dir).glob('*/*.log')).read_text()
    assert f'{newest} is truncated or damaged; continuing from {before}' in log
    assert is_intact(newest)  # trained and written again


def test_checkpoint__damaged_inside(tmp_path):
    torch.save({'weights': torch.zeros(1000)}, tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[len(content) // 2] ^= 1  # of the same length: only the checksum tells
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(ConfigError, match=r'none of the 1 checkpoints in .* is whole \(.*a.pth\)'):
        latest_checkpoint(tmp_path)


def test_checkpoint__none(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, [])


def write_checkpoints(work_dir, *iterations, noted=None):
    """Write small checkpoints, the oldest first, and mmengine's file with the newest one's path."""
    work_dir.mkdir(exist_ok=True)
    for time_of_file, iteration in enumerate(iterations, 10**9):
        path = work_dir / f'iter_{iteration}.pth'
        torch.save({'meta': {'iter': iteration}, 'optimizer': {}, 'message_hub': {}}, path)
        os.utime(path, (time_of_file, time_of_file))
    (work_dir / 'last_checkpoint').write_text(f'{noted or path}')


def newest(work_dir):
    return Path(latest_checkpoint(work_dir)[0])


def test_checkpoint__of_a_moved_work_directory(tmp_path):
    write_checkpoints(tmp_path / 'new', 3, 1, 2, noted=tmp_path / 'old' / 'iter_3.pth')
    assert newest(tmp_path / 'new') == tmp_path / 'new' / 'iter_3.pth'
    (tmp_path / 'new' / 'iter_3.pth').unlink()
    assert newest(tmp_path / 'new') == tmp_path / 'new' / 'iter_2.pth'


def test_checkpoint__of_a_copied_work_directory_is_its_own(tmp_path):
    write_checkpoints(tmp_path / 'old', 1, 2)
    shutil.copytree(tmp_path / 'old', tmp_path / 'new')
    write_checkpoints(tmp_path / 'old', 1, 2, 3)
    assert newest(tmp_path / 'new') == tmp_path / 'new' / 'iter_2.pth'
    (tmp_path / 'new' / 'iter_2.pth').unlink()
    assert newest(tmp_path / 'new') == tmp_path / 'new' / 'iter_1.pth'


def test_checkpoint__of_another_folder(tmp_path):
    """CheckpointHook(out_dir=...) writes checkpoints to another folder."""
    write_checkpoints(tmp_path / 'work', 1, noted=tmp_path / 'out' / 'iter_2.pth')
    write_checkpoints(tmp_path / 'out', 2)
    (tmp_path / 'out' / 'last_checkpoint').unlink()
    assert newest(tmp_path / 'work') == tmp_path / 'out' / 'iter_2.pth'


def test_checkpoint__left_by_an_earlier_training_is_not_before_this_ones(tmp_path):
    write_checkpoints(tmp_path, 9, 1, 2)
    assert newest(tmp_path) == tmp_path / 'iter_2.pth'
    order = []
    latest_checkpoint(tmp_path, accept=lambda it: order.append(it['meta']['iter']))
    assert order == [2, 1, 9]


def weights_only(path, *dropped):
    """Write a copy of a checkpoint without some keys, newer than all others."""
    checkpoint = load(path)
    for key in dropped:
        del checkpoint[key]
    torch.save(checkpoint, path.with_name('student-0123abcd.pth'))
    return str(path.with_name('student-0123abcd.pth'))


@pytest.mark.parametrize('dropped', [('optimizer',), ('message_hub',), ('optimizer', 'distill')])
def test_checkpoint__weights_only_are_passed_over(config, dropped):
    run = config()
    start(run)
    newest = Path(run.work_dir) / 'iter_12.pth'
    exported = weights_only(newest, *dropped)
    (Path(run.work_dir) / 'last_checkpoint').unlink()
    assert latest_checkpoint(run.work_dir) == (str(newest), [])
    assert latest_checkpoint(run.work_dir, accept=lambda _: True) == (exported, [])
    for path in Path(run.work_dir).glob('iter_*.pth'):
        path.unlink()
    assert latest_checkpoint(run.work_dir) == (None, [])


def refused_to_resume(config, capsys, *args):
    """Resume a training that must be refused; return the printed line."""
    path = Path(config.work_dir).parent / 'config.py'
    config.dump(path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', path, '--resume', *args)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def test_resume__weights_only_are_refused(config, capsys):
    run = config()
    start(run)
    path = weights_only(Path(run.work_dir) / 'iter_12.pth', 'optimizer', 'message_hub')
    expected = (
        f'train.py: model: checkpoint {path} cannot be resumed (it has no optimizer '
        f'and no message_hub): it is of an exported or published detector, or a best_*.pth; '
        f'start from its weights: --cfg-options load_from={path}, without --resume.\n'
    )
    assert refused_to_resume(run, capsys, path) == expected
    # The training's own, saved with save_optimizer=False: no silent start from the beginning.
    for other in Path(run.work_dir).glob('iter_*.pth'):
        other.unlink()
    (Path(run.work_dir) / 'last_checkpoint').write_text(path)
    assert refused_to_resume(run, capsys) == expected


def test_resume__plain_and_distilled_do_not_mix(config, capsys):
    plain, mixed = config('plain', model=fcos()), config('distilled')
    for run in (plain, mixed):
        start(run)
    kinds = [('plain', plain, 'distilled', mixed), ('distilled', mixed, 'plain', plain)]
    for kind, run, wanted, other in kinds:
        path = f'{run.work_dir}/iter_12.pth'
        line = refused_to_resume(other, capsys, path)
        assert f'is of a {kind} training, and this config of a {wanted} one' in line
        assert f'--cfg-options load_from={path}, without --resume.' in line
        assert line.count('\n') == 1


def test_resume__plain_as_distilled_without_adapters(config, files):
    """The optimizer is the same, so resuming works, with a warning that projections are fitted."""
    plain = config('plain', model=fcos(fpn_channels=24))
    start(plain)
    teacher = dict(
        config=str(files / 'teacher/teacher.py'), checkpoint=str(files / 'teacher/teacher.pth')
    )
    run = config(model=distilled(fcos(fpn_channels=24), teacher))
    run.train_cfg.max_epochs = EPOCHS + 1
    run.dump(Path(run.work_dir).parent / 'config.py')
    path = Path(plain.work_dir) / 'iter_12.pth'
    call_tool('train.py', Path(run.work_dir).parent / 'config.py', '--resume', path)
    log = next(Path(run.work_dir).glob('*/*.log')).read_text()
    assert 'holds no distillation state' in log
    last = latest_checkpoint(run.work_dir)[0]
    assert load(last)['meta']['iter'] > 12

    plain.merge_from_dict({'work_dir': f'{run.work_dir}_plain', 'train_cfg.max_epochs': EPOCHS})
    plain.dump(Path(run.work_dir).parent / 'plain.py')
    call_tool('train.py', Path(run.work_dir).parent / 'plain.py', '--resume', last)
    log = next(Path(plain.work_dir).glob('*/*.log')).read_text()
    assert 'is of a distilled training; it continues without distillation' in log
    assert 'of 12: nothing is left to train' in log


def test_signal__after_a_training_that_failed_is_not_kept(config):
    """Such as Ctrl-C in a notebook: hooks are not notified of an exception."""

    class Fail(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            raise Stop

    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Stop):
        start(config(), Fail())
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoint__full_disk_leaves_the_last_good_one(config, monkeypatch, capsys):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': 1})
    fsync, sizes = os.fsync, []

    def full(descriptor):
        if os.fstat(descriptor).st_size > 100_000:  # a checkpoint
            sizes.append(1)
            if len(sizes) == 4:
                raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(descriptor)

    monkeypatch.setattr(rdimkd_det.files.whole.os, 'fsync', full)
    run.dump(Path(run.work_dir).parent / 'config.py')
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', Path(run.work_dir).parent / 'config.py')
    assert exit_info.value.code == 1
    last = Path(run.work_dir) / 'iter_3.pth'
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert 'iter_4.pth' in message and 'No space left on device' in message
    assert f'The last good checkpoint is {last}' in message
    assert [path for path in Path(run.work_dir).iterdir() if '.pth' in path.name] == [last]
    assert is_intact(last)


@HOOKS.register_module()
class FillDisk(Hook):
    """Redirects what is written after the third iteration to /dev/full, as on a full disk."""

    def __init__(self, part):
        self.part = part

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3 and self.part == 'scalars':
            scalars = Path(runner.log_dir) / 'vis_data' / 'scalars.json'
            scalars.unlink()
            scalars.symlink_to('/dev/full')
        if runner.iter == 3 and self.part == 'log':
            (handler,) = (h for h in runner.logger.handlers if isinstance(h, logging.FileHandler))
            handler.baseFilename = '/dev/full'
            handler.stream = handler._open()
            runner.logger.removeHandler(handler)  # not for the tests that follow
            only = mock.patch.object(runner.logger, 'handlers', [handler])
            with contextlib.closing(handler), only:
                runner.logger.warning('lost')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
@pytest.mark.parametrize('part', ['scalars', 'log'])
def test_log__full_disk_says_so_and_names_the_last_checkpoint(config, capsys, part):
    run = config()
    run.custom_hooks.append(dict(type='FillDisk', part=part, priority='HIGH'))
    run.dump(Path(run.work_dir).parent / 'config.py')
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', Path(run.work_dir).parent / 'config.py')
    assert exit_info.value.code == 1
    errors = capsys.readouterr().err
    assert errors.strip().splitlines()[-1] == (
        f'train.py: the disk is full (No space left on device), work directory {run.work_dir}. '
        f'The last good checkpoint is {run.work_dir}/iter_3.pth. Fix this, then continue with '
        f'--resume.'
    )
    assert 'Traceback' not in errors and 'Logging error' not in errors


def test_last_checkpoint__is_whole_on_a_full_disk(config, monkeypatch):
    run = config()
    fsync, notes = os.fsync, []

    def full(descriptor):
        if os.fstat(descriptor).st_size < 1000:  # no checkpoint, but the name of one
            notes.append(1)
            if len(notes) == 4:
                raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(descriptor)

    monkeypatch.setattr(rdimkd_det.files.whole.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        start(run)
    assert (Path(run.work_dir) / 'last_checkpoint').read_text() == f'{run.work_dir}/iter_3.pth'
    assert is_intact(Path(run.work_dir) / 'iter_3.pth')
    assert is_intact(Path(run.work_dir) / 'iter_4.pth')


def test_checkpoint__outdated_ones_are_removed(config):
    run = config()
    start(run)
    names = sorted(path.name for path in Path(run.work_dir).glob('*.pth'))
    assert names == ['iter_11.pth', 'iter_12.pth']


# Signals


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal__writes_a_checkpoint_first(config, capsys, number, status):
    run = config(**{'default_hooks.checkpoint.interval': 100, 'custom_hooks': []})
    whole = config('whole')
    start(whole)

    class Send(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter + 1 == 6:
                os.kill(os.getpid(), number)

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run.custom_hooks = [dict(type='DistillHook', calibration_images=8)]
    with pytest.raises(KeyboardInterrupt) as stopped:
        start(run, Send())
    path = Path(run.work_dir) / 'interrupted.pth'
    assert str(stopped.value) == (
        f'stopped at iteration 6, written to {path}; continue with --resume.'
    )
    assert stopped.value.status == status
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert list(Path(run.work_dir).glob('*.pth')) == [path]
    start(run, resume=True)
    assert_equal(final(whole), final(run))
    assert not path.exists()  # replaced by a regular one


def test_signal__to_one_of_two_processes_stops_both(config, tmp_path):
    options = {'default_hooks.checkpoint.interval': 100, 'train_cfg.val_interval': 10}
    run = distributed(config(**options))

    def train_until_signal(rank):
        class Send(Hook):
            def before_train_iter(self, runner, batch_idx, data_batch=None):
                if runner.iter + 1 == 3 and rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)

        os.environ['LOCAL_RANK'] = str(rank)
        with pytest.raises(KeyboardInterrupt, match='stopped at iteration 10'):
            start(run, Send())

    run_distributed(train_until_signal, tmp_path)
    assert load(Path(run.work_dir) / 'interrupted.pth')['meta']['iter'] == 10


@pytest.mark.slow
def test_signal__command_line(config):
    run = config()
    run.train_cfg.max_epochs = 100
    run.dump(Path(run.work_dir).parent / 'config.py')
    process = subprocess.Popen(
        [sys.executable, 'tools/train.py', str(Path(run.work_dir).parent / 'config.py')],
        cwd=REPOSITORY,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(Path(run.work_dir).glob('iter_*.pth')) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    last = errors.strip().splitlines()[-1]
    assert last.startswith('train.py: stopped at iteration ') and 'interrupted.pth' in last
    assert 'Traceback' not in errors
    assert 'stopping after this iteration, with a checkpoint; once more stops at once' in errors
    assert latest_checkpoint(run.work_dir)[0].endswith('interrupted.pth')


@pytest.fixture
def listening():
    request = StopRequest()
    request.listen()
    yield request
    request.stop_listening()


def forked(count):
    """Yield sleeping processes, and kill them in the end."""
    context = multiprocessing.get_context('fork')
    children = [context.Process(target=time.sleep, args=(600,)) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for child in children:
            child.start()
            stack.callback(child.kill)
            yield child


def test_signal__ends_forked_processes_as_without_a_training(listening):
    """At any moment; a pool whose processes survive the signal would be waited for forever."""
    for child in forked(40):
        child.terminate()  # most have not even begun
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
    assert listening.signal is None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_signal__mask_of_a_fork_is_the_earlier_one(listening):
    blocked = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        list(forked(1))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def test_signal__ctrl_c_is_left_to_the_parent(listening):
    """A terminal sends Ctrl-C to the workers too, but the last iterations need their batches."""
    for child in forked(1):
        os.kill(child.pid, signal.SIGINT)
        child.join(0.5)
        assert child.is_alive()
    listening.stop_listening()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for child in forked(1):
        os.kill(child.pid, signal.SIGINT)
        child.join(10)
        assert child.exitcode == -signal.SIGINT


def test_signal__metric_that_works_in_several_processes(config):
    run = config(model=fcos(), **{'val_evaluator.use_mp_eval': True, 'train_cfg.max_epochs': 2})

    def train_guarded():
        runner = Runner.from_cfg(run)
        guard(runner)
        runner.train()

    assert in_child(train_guarded) == 0


# Losses that are not finite


class Poison(Hook):
    """Makes the student's maps infinite for some iterations."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weights = distilled_student(runner.model).distill.losses.neck.adapters[1].weight
        if runner.iter + 1 in self.iterations:
            self.kept = weights.detach().clone()
            weights.data.fill_(float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 in self.iterations:
            model = distilled_student(runner.model)
            model.distill.losses.neck.adapters[1].weight.data.copy_(self.kept)


def test_nonfinite__stops_with_level_and_last_checkpoint(config):
    run = config()
    with pytest.raises(FloatingPointError) as stopped:
        start(run, Poison(4))
    message = str(stopped.value)
    assert message.startswith('loss_rdimkd_neck_s16 is not finite')
    assert f'The last good checkpoint is {run.work_dir}/iter_3.pth.' in message
    assert_newest_is_good(run, 3)


def assert_newest_is_good(run, iteration):
    assert latest_checkpoint(run.work_dir)[0] == f'{run.work_dir}/iter_{iteration}.pth'
    assert not Path(run.work_dir, f'iter_{iteration + 1}.pth').exists()
    state = load(Path(run.work_dir) / f'iter_{iteration}.pth')['state_dict']
    assert all(value.isfinite().all() for value in state.values())


def test_nonfinite__stops_before_a_checkpoint_hook_that_comes_first(config):
    run = config(**{'default_hooks.checkpoint.priority': 'VERY_HIGH'})
    with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
        start(run, Poison(4))
    assert_newest_is_good(run, 3)


@pytest.mark.parametrize('normalize', ['standardize', None])
def test_nonfinite__on_one_of_two_processes_stops_both(files, config, tmp_path, normalize):
    """Without 'standardize', ranks have their own losses, and rank 0, which saves, is finite."""
    run = distributed(config(model=distilled(fcos(), write_teacher(tmp_path), normalize=normalize)))

    def train_until_broken(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
            start(run, *([Poison(4)] if rank == 1 else []))

    run_distributed(train_until_broken, tmp_path)
    assert_newest_is_good(run, 3)


class Diverge(Hook):
    """Makes a weight NaN after an iteration, before its checkpoint is written."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.model.backbone.conv1.weight.data[0] = float('nan')


@pytest.mark.parametrize('num_kept', [1, 2])
def test_nonfinite__checkpoint_of_broken_weights_is_not_called_good(config, num_kept):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': num_kept})
    with pytest.raises(FloatingPointError) as stopped:
        start(run, Diverge(4))
    third, fourth = (f'{run.work_dir}/iter_{number}.pth' for number in (3, 4))
    expected = {
        1: f'No checkpoint is good: {fourth} and those before hold NaN or infinity. ',
        2: f'The last good checkpoint is {third} (--resume {third}): those after it hold NaN or '
        f'infinity. ',
    }
    assert expected[num_kept] in str(stopped.value)


def test_nonfinite__skip_leaves_out_the_step_and_counts(config, capsys):
    run = config()
    run.custom_hooks[0].nonfinite = 'skip'
    start(run, Poison(4, 6))
    skipped = load(Path(run.work_dir) / 'iter_12.pth')
    assert all(value.isfinite().all() for value in skipped['state_dict'].values())
    history = skipped['message_hub']['log_scalars']['train/rdimkd_skipped']
    assert history.current() == 2


def test_nonfinite__skipped_step_changes_no_weight(config):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': -1})
    run.custom_hooks[0].nonfinite = 'skip'
    start(run, Poison(4))
    weights = [load(Path(run.work_dir) / f'iter_{number}.pth') for number in (3, 4, 5)]
    names = [name for name, _ in MODELS.build(fcos()).named_parameters()]
    for name in names:
        assert torch.equal(weights[0]['state_dict'][name], weights[1]['state_dict'][name])
    assert any(
        not torch.equal(weights[1]['state_dict'][name], weights[2]['state_dict'][name])
        for name in names
    )


class Overflow(Hook):
    """Makes all maps of the student infinite in some iterations."""

    def __init__(self, *iterations):
        self.iterations = iterations

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            conv = distilled_student(runner.model).backbone.conv1
            self.handle = conv.register_forward_hook(lambda *args: args[2] * float('inf'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 in self.iterations:
            self.handle.remove()


@pytest.mark.parametrize('update_buffers', [False, True])
def test_nonfinite__skipped_step_leaves_no_trace_in_batch_norm(config, update_buffers):
    """Nor in averaged models; in half precision, one infinite value would ruin its channel."""
    run = config()
    run.custom_hooks[0].nonfinite = 'skip'
    run.custom_hooks.append(dict(type='EMAHook', update_buffers=update_buffers))
    seen = []

    class Statistics(Hook):
        def _note(self, runner, **_):
            state = runner.model.state_dict()
            seen.append({key: value.clone() for key, value in state.items() if 'running' in key})

        before_train_iter = after_train_iter = _note

    start(run, Overflow(4), Statistics())
    before, after = seen[6:8]
    assert_equal(before, after)
    last = load(Path(run.work_dir) / 'iter_12.pth')
    for state in (last['state_dict'], last['ema_state_dict']):
        assert all(value.isfinite().all() for value in state.values())


class CountSteps(Hook):
    """Records the iterations in which the optimizer takes a step."""

    def __init__(self):
        self.steps = []

    def before_train(self, runner):
        step = runner.optim_wrapper.optimizer.step

        def counted(*args, **kwargs):
            self.steps.append(runner.iter + 1)
            return step(*args, **kwargs)

        runner.optim_wrapper.optimizer.step = counted

    def after_train(self, runner):
        self.weights = dict(distilled_student(runner.model).named_parameters())


@pytest.mark.parametrize(
    ('skipped', 'steps'),
    [
        ([5], [3, 6, 9, 12]),
        ([6], [3, 6, 9, 12]),
        ([4, 5, 6], [3, 9, 12]),  # nothing was gathered
        ([12], [3, 6, 9, 12]),
    ],
)
def test_nonfinite__skipped_steps_leave_windows_of_accumulation_alone(config, skipped, steps):
    run = config(**{'optim_wrapper.accumulative_counts': 3})
    run.custom_hooks[0].nonfinite = 'skip'
    count = CountSteps()
    start(run, Overflow(*skipped), count)
    assert count.steps == steps


def test_nonfinite__skipped_end_of_a_window_keeps_processes_alike(config, tmp_path):
    run = distributed(config(**{'optim_wrapper.accumulative_counts': 2}))
    run.custom_hooks[0].nonfinite = 'skip'
    run.train_cfg.max_epochs = 1

    def train_until_the_end(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        count = CountSteps()
        start(run, count, *([Overflow(2)] if rank == 1 else []))
        assert count.steps == [2, 4]
        return count.weights

    first, second = run_distributed(train_until_the_end, tmp_path)
    assert_equal(first, second)


# Data that cannot be read


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('damage', ['missing', 'empty', 'corrupt'])
def test_image__is_named(config, files, tmp_path, capsys, damage, num_workers):
    data = tmp_path / 'data'
    shutil.copytree(files / 'data', data)
    image = data / 'images' / '3.png'
    if damage == 'missing':
        image.unlink()
    else:
        image.write_bytes(b'' if damage == 'empty' else b'no image')
    run = config(num_workers=num_workers)
    run.train_dataloader.dataset.data_root = str(data)
    run.dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', tmp_path / 'config.py')
    assert exit_info.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f'train.py: image {image} cannot be read (')


def test_worker__killed(config, tmp_path, capsys):
    run = config(num_workers=2)
    run.custom_hooks.append(dict(type='KillWorker'))
    run.train_dataloader.batch_size = 1  # more batches than are loaded ahead
    run.dump(tmp_path / 'config.py')
    with pytest.raises(SystemExit) as exit_info:
        call_tool('train.py', tmp_path / 'config.py')
    assert exit_info.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'DataLoader worker' in last and 'lower train_dataloader.num_workers' in last
    assert re.search(r'The last good checkpoint is .*/iter_\d+\.pth', last)
