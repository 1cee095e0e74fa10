"""Trainings and tests by command line."""

import logging
import pickle
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from command_lines import plain_weights
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import call_tool, fcos, hidden, load, run_tool, trained_losses

from rdimkd_det import ConfigError
from rdimkd_det.commands import launch
from rdimkd_det.teacher.acceleration import accelerate


@pytest.mark.slow
def test_tools__train_resume_and_test(files, tmp_path):
    """Five commands in sequence, each of which needs the previous one."""
    work_dir = tmp_path / 'run'
    done = run_tool(
        'train.py',
        files / 'based.py',
        '--work-dir',
        work_dir,
        '--cfg-options',
        'optim_wrapper.optimizer.lr=0.002',
        'model.losses.neck.loss_weight=0.5',
    )
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr
    checkpoint = load(work_dir / 'epoch_1.pth')
    assert checkpoint['optimizer']['param_groups'][0]['lr'] == 0.002
    losses = trained_losses(work_dir)
    assert len(losses) == 2 and 0.3 < losses[0]['loss_rdimkd_neck_s8'] < 1.5

    # --resume goes on where it was: epoch 2 only.
    call_tool(
        'train.py',
        files / 'distilled.py',
        '--work-dir',
        work_dir,
        '--resume',
        '--cfg-options',
        'train_cfg.max_epochs=2',
    )
    resumed = load(work_dir / 'epoch_2.pth')
    assert resumed['meta']['iter'] == 4 and len(trained_losses(work_dir)) == 2
    basis = 'losses.neck.projections.0.basis'
    assert torch.equal(resumed['distill'][basis], checkpoint['distill'][basis])

    # Testing needs no teacher.
    with hidden(str(files / 'teacher')):
        done = run_tool(
            'test.py',
            files / 'distilled.py',
            work_dir / 'epoch_2.pth',
            '--work-dir',
            tmp_path / 'test',
            '--out',
            tmp_path / 'results/found.pkl',
            '--show-dir',
            'painted',
        )
    assert done.returncode == 0, done.stderr
    assert 'Average Precision' in done.stdout
    found = pickle.loads((tmp_path / 'results/found.pkl').read_bytes())
    assert len(found) == 8 and all(len(sample['pred_instances']['scores']) for sample in found)
    assert len(list((tmp_path / 'test').glob('*/painted/*.png'))) == 8

    # The plain config takes the same checkpoint and finds the same.
    call_tool(
        'test.py',
        files / 'plain.py',
        work_dir / 'epoch_2.pth',
        '--work-dir',
        tmp_path / 'plain',
        '--out',
        tmp_path / 'plain.pkl',
    )
    plain = pickle.loads((tmp_path / 'plain.pkl').read_bytes())
    for one, other in zip(found, plain):
        for key in ('bboxes', 'scores', 'labels'):
            torch.testing.assert_close(one['pred_instances'][key], other['pred_instances'][key])

    # Flipped images as well, of a data set in a wrapper.
    cfg = Config.fromfile(files / 'distilled.py')
    wrapped = dict(type='ConcatDataset', datasets=[cfg.test_dataloader.dataset])
    cfg.test_dataloader.dataset = wrapped
    cfg.dump(tmp_path / 'wrapped.py')
    call_tool(
        'test.py',
        tmp_path / 'wrapped.py',
        work_dir / 'epoch_2.pth',
        '--work-dir',
        tmp_path / 'tta',
        '--tta',
        '--out',
        tmp_path / 'tta.pkl',
    )
    averaged = pickle.loads((tmp_path / 'tta.pkl').read_bytes())
    assert len(averaged) == 8
    assert len(averaged[0]['pred_instances']['scores']) > len(found[0]['pred_instances']['scores'])


def test_train__resume_with_nothing_there_is_a_first_start(files, tmp_path):
    model = MODELS.build(fcos())
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
    options = [f'load_from={tmp_path}/start.pth', 'optim_wrapper.optimizer.lr=0']
    work_dir = ['--work-dir', tmp_path / 'run']
    call_tool('train.py', files / 'plain.py', *work_dir, '--resume', '--cfg-options', *options)
    weights = load(tmp_path / 'run/epoch_1.pth')['state_dict']
    assert weights['bbox_head.conv_cls.weight'].eq(0.25).all()


def test_train__resume_where_rank_0_has_no_checkpoint(monkeypatch):
    """On machines without a common disk, of which another one is the first this time."""

    def of_rank_0(start):
        start[:] = [False, None, None]

    monkeypatch.setattr(launch, 'broadcast_object_list', of_rank_0)
    options = dict(work_dir='run', logger=logging.getLogger(), _randomness_cfg={'seed': 0})
    runner = SimpleNamespace(_resume=True, _load_from='run/epoch_1.pth', **options)
    with pytest.raises(ConfigError, match=r'finds run/epoch_1.pth here, .* rank 0 finds no check'):
        launch.run_training(runner, report=None, damaged=[])


def test_train__auto_scale_lr_needs_base_batch_size(refused, files):
    line = refused('train.py', files / 'distilled.py', '--auto-scale-lr')
    assert 'base_batch_size' in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU takes mixed precision')
def test_train__mixed_precision_needs_a_gpu(refused, files):
    line = refused('train.py', files / 'distilled.py', '--amp')
    assert 'needs a GPU' in line


def test_train__mixed_precision_needs_an_optimizer(refused, config):
    path = config(lambda cfg: [cfg.pop(key) for key in ('train_dataloader', 'train_cfg')])
    line = refused('train.py', path, '--amp', '--cfg-options', 'optim_wrapper=None')
    assert '--amp needs optim_wrapper=dict(optimizer=...) in ' in line


@pytest.mark.parametrize(
    'written',
    [
        lambda weights: {f'module.{key}': value for key, value in weights.items()},  # of DDP
        lambda weights: {key.replace('bbox_head', 'rpn_head'): v for key, v in weights.items()},
        lambda weights: {key: v for key, v in weights.items() if 'num_batches' not in key},
        # Buffers of a data preprocessor, MMDetection 2's EMA, position ids, another head.
        lambda weights: {
            **weights,
            'data_preprocessor.mean': torch.zeros(3),
            'ema_backbone_conv1_weight': torch.zeros(8, 3, 7, 7),
            'neck.position_ids': torch.arange(3),
            'mask_head.conv.weight': torch.zeros(1),
        },
    ],
    ids=['ddp', 'two_stage', 'old_pytorch', 'more'],
)
def test_test__takes_what_mmdetection_takes(files, tmp_path, written):
    torch.save(dict(state_dict=written(plain_weights())), tmp_path / 'given.pth')
    call_tool('test.py', files / 'plain.py', tmp_path / 'given.pth', '--work-dir', tmp_path / 'w')


@pytest.mark.parametrize('shared', [False, True])
def test_train__accelerates_the_teacher_for_the_run_alone(files, tmp_path, shared):
    cfg = Config.fromfile(files / 'distilled.py')
    if shared:  # mapped from the file; the report reads it in the usual way
        cfg.model.teacher.update(fuse=False, channels_last=False, share_weights=True)
    cfg.dump(tmp_path / 'config.py')
    patched = mock.patch('rdimkd_det.teacher.teacher.accelerate', wraps=accelerate)
    with patched as accelerated:
        call_tool('train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    assert accelerated.call_count == 1
