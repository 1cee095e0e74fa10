"""Trainings that are killed, stopped and damaged, and what is left of them."""

import errno
import json
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

import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.runner import Runner
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
from rdimkd_det.guard import latest_checkpoint
from rdimkd_det.guard.saving import is_whole

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
    """Makes the config of a run that draws random numbers all the time and saves each iteration."""

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
    """Exit status of a function in a forked process."""

    def run():
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        function(*args)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join(timeout=120)
    return process.exitcode


def start(config, *hooks, resume=False):
    """Train, or go on from the newest whole checkpoint, as tools/train.py does."""
    if resume:
        path, _ = latest_checkpoint(config.work_dir)
        config.resume, config.load_from = True, path
    runner = Runner.from_cfg(config)
    for hook in (Noise(), *hooks):
        runner.register_hook(hook)
    runner.train()


def final(config):
    """What a finished training leaves: weights, distillation, optimizer."""
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


class Stop(Exception):
    """Ends a training without a word, as a kill does, and leaves the process alive."""


class StopAfter(Hook):
    """Stops after an iteration, when its checkpoint has been written."""

    priority = 'LOWEST'

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            raise Stop


def distributed(config):
    """The config for two processes, whose random states differ."""
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
    """With checkpoints after epochs only: the validation of a killed run is run again."""
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
    """Another number of workers draws other augmentations, from the same order of images."""
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
    assert f'{newest} is cut off or damaged; going on from {before}' in log
    assert is_whole(newest)  # trained and written again


def test_checkpoint__damaged_inside(tmp_path):
    torch.save({'weights': torch.zeros(1000)}, tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[len(content) // 2] ^= 1  # of the same length: only the checksum tells
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(ConfigError, match=r'none of the 1 checkpoints in .* is whole \(.*a.pth\)'):
        latest_checkpoint(tmp_path)


def test_checkpoint__none(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, [])


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
    assert is_whole(last)


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
        f'stopped at iteration 6, written to {path}; go on with --resume.'
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
    assert 'stopping after this iteration, with a checkpoint; again to stop at once' in errors
    assert latest_checkpoint(run.work_dir)[0].endswith('interrupted.pth')


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
    """Without 'standardize' the ranks' losses differ, and the first rank, which saves, is sound."""
    run = distributed(config(model=distilled(fcos(), write_teacher(tmp_path), normalize=normalize)))

    def train_until_broken(rank):
        os.environ['LOCAL_RANK'] = str(rank)
        with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
            start(run, *([Poison(4)] if rank == 1 else []))

    run_distributed(train_until_broken, tmp_path)
    assert_newest_is_good(run, 3)


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
