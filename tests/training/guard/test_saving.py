"""Checkpoint files: damaged, moved, outdated, and on a full disk."""

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from interruptions import start
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from runs import call_tool

import rdimkd_det.files.atomic
from rdimkd_det import ConfigError
from rdimkd_det.commands.launch import _resume
from rdimkd_det.training.guard import latest_checkpoint
from rdimkd_det.training.guard.saving import is_intact


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
    with pytest.raises(ConfigError, match=r'none of the 1 checkpoints in .* is intact \(.*a.pth\)'):
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


def test_checkpoint__of_a_moved_work_directory_by_a_config_with_resume(tmp_path):
    write_checkpoints(tmp_path, 1, noted='old/iter_1.pth')
    cfg = Config(dict(resume=True, load_from=None, work_dir=str(tmp_path)))
    _resume(cfg, checkpoint=None)
    assert cfg.load_from == str(tmp_path / 'iter_1.pth')


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


def test_checkpoint__full_disk_leaves_the_last_good_one(config, monkeypatch, capsys):
    run = config(**{'default_hooks.checkpoint.max_keep_ckpts': 1})
    fsync, sizes = os.fsync, []

    def full(descriptor):
        if os.fstat(descriptor).st_size > 100_000:  # a checkpoint
            sizes.append(1)
            if len(sizes) == 4:
                raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(descriptor)

    monkeypatch.setattr(rdimkd_det.files.atomic.os, 'fsync', full)
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

    monkeypatch.setattr(rdimkd_det.files.atomic.os, 'fsync', full)
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


@pytest.mark.parametrize(
    ('loop', 'left'),
    [
        ('epochs', ['best_coco_bbox_mAP_epoch_2.pth']),
        ('iterations', ['best_coco_bbox_mAP_epoch_0.pth', 'epoch_1.pth']),
    ],
)
def test_checkpoint__the_best_one_alone_is_left(config, monkeypatch, loop, left):
    """In an iteration-based training all bests have one name, which mmengine removes and rewrites.

    That of epochs writes no other checkpoint.
    """
    scores = iter((0.1, 0.3, 0.2))
    monkeypatch.setattr(CocoMetric, 'compute_metrics', lambda *_: {'bbox_mAP': next(scores)})
    run = config(**{'train_cfg.val_interval': 1})
    by_iteration = loop == 'iterations'
    run.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=-1, save_best='coco/bbox_mAP', save_last=by_iteration
    )
    if by_iteration:
        run.train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=2)
        run.train_dataloader.sampler = dict(type='InfiniteSampler')
    start(run)
    assert next(scores, None) is None
    assert sorted(path.name for path in Path(run.work_dir).glob('*.pth')) == left
