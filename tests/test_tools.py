"""The command lines: complete runs, and every mistake that a user can make."""

import argparse
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from runs import (
    REPOSITORY,
    call_tool,
    distilled,
    fcos,
    hidden,
    load,
    run_config,
    run_tool,
    trained_losses,
    write_data,
    write_teacher,
)

from rdimkd_det import RdimKDDistiller
from rdimkd_det.acceleration import accelerate
from rdimkd_det.commands.checks import check_model
from rdimkd_det.commands.options import OptionsAction
from rdimkd_det.files import checkpoints


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Folder with a data set, a teacher, and configs of a distilled and a plain student."""
    folder = tmp_path_factory.mktemp('files')
    data = write_data(folder / 'data')
    teacher = write_teacher(folder / 'teacher')
    config = run_config(data, folder / 'unused', distilled(fcos(), teacher), max_epochs=1)
    config.dump(folder / 'distilled.py')
    based = {key: value for key, value in config.items() if not key.startswith('custom_')}
    Config(based).dump(folder / 'without_hook.py')
    (folder / 'based.py').write_text(
        "_base_ = ['without_hook.py', 'rdimkd_det::_base_/distill.py']\n"
    )
    run_config(data, folder / 'unused', fcos(), max_epochs=1).dump(folder / 'plain.py')
    return folder


@pytest.fixture
def config(files, tmp_path):
    """Write a config like distilled.py, modified by ``change(config)``; return its path."""

    def config(change) -> Path:
        teacher = {
            'config': str(files / 'teacher/teacher.py'),
            'checkpoint': str(files / 'teacher/teacher.pth'),
        }
        cfg = run_config(files / 'data', tmp_path / 'work', distilled(fcos(), teacher))
        content = cfg.to_dict()
        change(content)
        path = tmp_path / 'changed.json'
        path.write_text(json.dumps(content))
        return path

    return config


@pytest.fixture
def refused(tmp_path, capsys):
    """Call a tool that must end with one line and status 2, and write nothing; return the line."""

    def refused(tool, *args, work_dir=None):
        work_dir = work_dir or tmp_path / 'work'
        before = sorted(work_dir.rglob('*'))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, *args, '--work-dir', work_dir)
        assert stopped.value.code == 2
        assert sorted(work_dir.rglob('*')) == before
        return one_line(tool, capsys.readouterr().err)

    return refused


def one_line(tool: str, stderr: str) -> str:
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'{tool}: '), stderr
    return lines[0]


class Payload:
    """Makes a file when it is unpickled unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def malicious(files, tmp_path):
    """Yield a checkpoint of good weights and a payload; check that the payload did not run."""
    weights = load(files / 'teacher/teacher.pth')['state_dict']
    proof, path = tmp_path / 'payload_ran', tmp_path / 'malicious.pth'
    torch.save(dict(state_dict=weights, meta=dict(), payload=Payload(proof)), path)
    yield path
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists()  # it would have


# At work


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


def test_train__auto_scale_lr_needs_base_batch_size(refused, files):
    line = refused('train.py', files / 'distilled.py', '--auto-scale-lr')
    assert 'base_batch_size' in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU takes mixed precision')
def test_train__mixed_precision_needs_a_gpu(refused, files):
    line = refused('train.py', files / 'distilled.py', '--amp')
    assert 'needs a GPU' in line


# Mistakes


@pytest.mark.smoke
@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_mistake__no_such_config(refused, tool):
    checkpoint = ['none.pth'] if tool == 'test.py' else []
    assert refused(tool, 'no/such.py', *checkpoint) == f'{tool}: config no/such.py not found.'


def test_config__of_mmdetection(refused):
    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    root = 'train_dataloader.dataset.data_root=nowhere'
    line = refused('train.py', name, '--cfg-options', root)
    assert line.startswith(
        'train.py: train data: nowhere/annotations/instances_train2017.json does'
    )
    line = refused('train.py', 'mmdet::retinanet/none.py')
    assert line.startswith('train.py: config mmdet::retinanet/none.py cannot be read: FileNotFound')


def test_mistake__two_bases_with_hooks(refused, tmp_path):
    for name in ('student', 'distill'):
        (tmp_path / f'{name}.py').write_text("custom_hooks = [dict(type='EMAHook')]\n")
    (tmp_path / 'both.py').write_text("_base_ = ['student.py', 'distill.py']\n")
    line = refused('train.py', tmp_path / 'both.py')
    assert 'Duplicate key is not allowed among bases' in line
    assert line.endswith(
        "; in place of the base distill.py write custom_imports=dict(imports=['rdimkd_det'], "
        'allow_failed_imports=False) and custom_hooks=[*_base_.custom_hooks, '
        "dict(type='DistillHook')], as docs/config.md shows."
    )


def test_mistake__config_that_fails(refused, tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    line = refused('train.py', tmp_path / 'broken.py')
    assert 'broken.py cannot be read: SyntaxError' in line


@pytest.mark.slow
def test_mistake__in_a_process_of_its_own(files, malicious, tmp_path):
    """Checks that no import prints a second line."""
    work_dir = tmp_path / 'work'
    teacher = f'model.teacher.checkpoint={malicious}'
    done = run_tool(
        'train.py', files / 'distilled.py', '--work-dir', work_dir, '--cfg-options', teacher
    )
    assert done.returncode == 2
    assert 'could run code' in one_line('train.py', done.stderr)
    done = run_tool('test.py', files / 'plain.py', malicious, '--work-dir', work_dir)
    assert done.returncode == 2
    assert 'could run code' in one_line('test.py', done.stderr)
    assert not work_dir.exists()


@pytest.mark.smoke
@pytest.mark.parametrize('missing', ['student', 'teacher', 'losses'])
def test_mistake__part_of_model_missing(refused, config, missing):
    line = refused('train.py', config(lambda cfg: cfg['model'].pop(missing)))
    assert f'model.{missing} is missing' in line


def test_mistake__no_model(refused, config):
    assert 'has no model' in refused('train.py', config(lambda cfg: cfg.pop('model')))


@pytest.mark.parametrize('model', [None, 'FCOS', dict(bbox_head=dict())])
@pytest.mark.parametrize('tool', ['analyze_projection.py', 'visualize.py'])
def test_mistake__no_model_to_look_at(files, config, tmp_path, capsys, tool, model):
    path, out = config(lambda cfg: cfg.update(model=model)), tmp_path / 'x.png'
    seen = (files / 'teacher/teacher.pth', files / 'data/images/0.png')
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, path, *(seen if tool == 'visualize.py' else ()), '--out', out)
    assert stopped.value.code == 2
    line = one_line(tool, capsys.readouterr().err)
    assert line == f'{tool}: config {path} has no model with a type.'
    assert not out.exists()


@pytest.mark.parametrize(
    'tool', ['train.py', 'preflight.py', 'analyze_projection.py', 'cache_teacher.py']
)
def test_mistake__no_training_data(config, tmp_path, capsys, tool):
    for_testing_only = dict(train_dataloader=None, train_cfg=None, optim_wrapper=None)
    path, out = config(lambda cfg: cfg.update(for_testing_only)), tmp_path / 'x.png'
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, path, *([] if tool in ('train.py', 'preflight.py') else ['--out', out]))
    assert stopped.value.code == 2
    assert one_line(tool, capsys.readouterr().err) == (
        f'{tool}: config {path} has no train data; give it a train_dataloader with a dataset.'
    )


def of_loss(**changes):
    return lambda cfg: cfg['model']['losses']['neck'].update(changes)


def pca(dim):
    return of_loss(projection=dict(type='PCAProjection', dim=dim))


def of_teacher(**changes):
    return lambda cfg: cfg['model']['teacher'].update(changes)


def tapped_at(tap):
    return lambda cfg: cfg['model'].update(losses={tap: cfg['model']['losses']['neck']})


@pytest.mark.parametrize(
    'change, expected',
    [
        (of_loss(type='RdimKdLoss'), "unknown type 'RdimKdLoss'; did you mean 'RdimKDLoss'?"),
        (of_loss(type='Zebra'), "unknown type 'Zebra'; there are RdimKDLoss."),
        (of_loss(projection=dict(type='PCAProjektion', dim=8)), "did you mean 'PCAProjection'?"),
        (of_loss(projection=dict(dim=8)), 'must be a dict with a type'),
        (of_loss(normalize='teachr'), "normalize must be one of (None, 'teacher', 'standardize')"),
        (of_loss(loss_weight=-1), 'loss_weight must be a number of 0 or more'),
        (pca(0), "dim must be a whole number from 1 to the teacher's 24 channels, got 0"),
        (pca(-4), "the teacher's 24 channels, got -4"),
        (pca(25), "the teacher's 24 channels, got 25"),
        (pca('many'), "the teacher's 24 channels, got 'many'"),
        (of_loss(student_channels=99), 'student_channels=99 contradicts the model'),
        (tapped_at('nck'), "'data_preprocessor', 'backbone', 'neck', 'bbox_head'"),
        (
            of_loss(teacher_module='backbone.layer1'),
            'the student has strides [8, 16, 32], the teacher [4]',
        ),
        (lambda cfg: cfg['model'].update(inherit=['neck']), "inherit 'neck': "),
        (of_teacher(checkpoint=None), 'teacher: needs a checkpoint'),
        (of_teacher(checkpoint='no.pth'), 'teacher: checkpoint no.pth does not exist'),
        (of_teacher(config='no.py'), 'teacher: config no.py cannot be read'),
        (lambda cfg: cfg['model']['student'].update(type='FCO'), 'FCO is not in'),
        (lambda cfg: cfg.update(custom_hooks=[]), "custom_hooks has no dict(type='DistillHook')"),
        (lambda cfg: cfg.update(model=cfg['model']['student']), 'the model is a plain FCOS'),
    ],
)
def test_mistake__in_config(refused, config, change, expected):
    assert expected in refused('train.py', config(change))


@pytest.mark.parametrize('scope', ['mmdet', 'rdimkd_det'])
def test_check_model__types_with_a_scope(config, scope):
    def add_scope(cfg):
        cfg['model']['type'] = f'{scope}.RdimKDDistiller'
        cfg['custom_hooks'][0]['type'] = f'{scope}.DistillHook'

    assert isinstance(
        check_model(Config.fromfile(config(add_scope)), training=True), RdimKDDistiller
    )


def test_mistake__teacher_checkpoint_truncated(refused, config, files, tmp_path):
    content = (files / 'teacher/teacher.pth').read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 10):
        (tmp_path / 'cut.pth').write_bytes(content[:size])
        line = refused('train.py', config(of_teacher(checkpoint=str(tmp_path / 'cut.pth'))))
        assert 'cut.pth cannot be read, it is damaged, incomplete' in line


def test_mistake__teacher_checkpoint_is_another_file(refused, config, files, tmp_path):
    (tmp_path / 'text.pth').write_text('<html>404 Not Found</html>')
    line = refused('train.py', config(of_teacher(checkpoint=str(tmp_path / 'text.pth'))))
    assert 'text.pth' in line
    torch.save(dict(epoch=3), tmp_path / 'empty.pth')
    line = refused('train.py', config(of_teacher(checkpoint=str(tmp_path / 'empty.pth'))))
    assert 'empty.pth holds no state_dict' in line


@pytest.mark.smoke
def test_mistake__teacher_checkpoint_of_another_architecture(refused, config, tmp_path):
    other = write_teacher(tmp_path / 'other', fpn_channels=40)['checkpoint']
    line = refused('train.py', config(of_teacher(checkpoint=other)))
    keys = [key for key in load(other)['state_dict'] if not key.startswith('bbox_head.')]
    assert f'{len(keys) - 12} of {len(keys)} keys match' in line
    assert '12 of another shape (neck.fpn_convs.0.conv.bias (40,) for (24,), ' in line
    weights = load(other)['state_dict']
    weights = {f'x{key}' if 'layer1' in key else key: value for key, value in weights.items()}
    torch.save(weights, tmp_path / 'renamed.pth')
    line = refused('train.py', config(of_teacher(checkpoint=str(tmp_path / 'renamed.pth'))))
    assert 'missing (backbone.layer1.0.bn1.bias, ' in line


@pytest.mark.smoke
def test_mistake__checkpoint_that_would_execute_code(refused, config, files, malicious, tmp_path):
    for tool, *args in (
        ('train.py', config(of_teacher(checkpoint=str(malicious)))),
        ('train.py', files / 'distilled.py', '--resume', malicious),
        ('test.py', files / 'distilled.py', malicious),
    ):
        line = refused(tool, *args)
        assert 'malicious.pth holds more than plain data' in line and 'could run code' in line
    # The newest checkpoint of the work directory, resumed from without naming it.
    work_dir = tmp_path / 'begun'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(malicious))
    line = refused('train.py', files / 'distilled.py', '--resume', work_dir=work_dir)
    assert 'malicious.pth holds more than plain data' in line


def test_mistake__checkpoint_missing(refused, files):
    for tool, *args in (
        ('train.py', files / 'distilled.py', '--resume', 'no.pth'),
        ('test.py', files / 'distilled.py', 'no.pth'),
    ):
        assert 'checkpoint no.pth does not exist' in refused(tool, *args)


@pytest.mark.parametrize(
    'root, help',
    [
        ('data/digits_gone/', 'tools/make_digits.py'),
        ('data/coco_gone/', 'https://cocodataset.org'),
        ('elsewhere/', 'train_dataloader.dataset.data_root'),
    ],
)
def test_mistake__data_missing(refused, config, root, help):
    path = config(lambda cfg: cfg['train_dataloader']['dataset'].update(data_root=root))
    line = refused('train.py', path)
    assert f'{root}annotations.json does not exist' in line and help in line


def test_mistake__data_missing_in_one_of_several(refused, config):
    def concatenate(cfg):
        there = cfg['train_dataloader']['dataset']
        gone = dict(there, data_root='elsewhere/')
        both = dict(type='ConcatDataset', datasets=[there, gone])
        cfg['train_dataloader']['dataset'] = dict(type='RepeatDataset', times=2, dataset=both)

    assert 'elsewhere/annotations.json does not exist' in refused('train.py', config(concatenate))


@pytest.mark.smoke
def test_mistake__work_dir_not_writable(refused, files, tmp_path):
    (tmp_path / 'file').write_text('kept')
    for tool, *args in (
        ('train.py', files / 'distilled.py'),
        ('test.py', files / 'plain.py', files / 'teacher/teacher.pth'),
    ):
        line = refused(tool, *args, work_dir=tmp_path / 'file/below')
        assert 'file/below cannot be written: Not a directory' in line
    line = refused('train.py', files / 'distilled.py', work_dir=Path('/proc/none/below'))
    assert line == (
        'train.py: work directory /proc/none/below cannot be written: No such file or directory; '
        'give a directory that you may write to.'
    )
    assert (tmp_path / 'file').read_text() == 'kept'


def test_mistake__resumed_checkpoint_of_another_architecture(refused, files, tmp_path):
    """Often of the same config before a class was added; the Runner would load what fits."""
    weights = plain_weights()
    weights['bbox_head.conv_cls.bias'] = torch.zeros(4)
    meta, optimizer = dict(epoch=1, iter=2), dict(state={}, param_groups=[])
    content = dict(state_dict=weights, meta=meta, optimizer=optimizer, message_hub={})
    torch.save(content, tmp_path / 'epoch_1.pth')
    line = refused('train.py', files / 'plain.py', '--resume', tmp_path / 'epoch_1.pth')
    assert f'epoch_1.pth does not match config {files}/plain.py: 146 of 147 keys match; ' in line
    assert '1 of another shape (bbox_head.conv_cls.bias (4,) for (3,))' in line


def test_mistake__tested_checkpoint_of_another_architecture(refused, files, tmp_path):
    path = files / 'teacher/teacher.pth'  # twice as wide
    line = refused('test.py', files / 'plain.py', path)
    expected = f'model: checkpoint {path} does not match config {files}/plain.py: 33 of 147 keys'
    assert expected in line
    assert 'of another shape (backbone.bn1.bias (16,) for (8,), ' in line
    weights = plain_weights()
    # A detector with one layer more, which the config does not run.
    more = {**weights, 'bbox_head.cls_convs.1.conv.weight': torch.zeros(16, 16, 3, 3)}
    torch.save(more, tmp_path / 'more.pth')
    line = refused('test.py', files / 'plain.py', tmp_path / 'more.pth')
    assert '1 unexpected (bbox_head.cls_convs.1.conv.weight)' in line
    del weights['neck.fpn_convs.0.conv.bias']
    torch.save(weights, tmp_path / 'less.pth')
    line = refused('test.py', files / 'distilled.py', tmp_path / 'less.pth')
    assert '1 missing (neck.fpn_convs.0.conv.bias)' in line


def plain_weights() -> dict:
    """Return the state dict of plain.py's detector."""
    init_default_scope('mmdet')
    return dict(MODELS.build(fcos()).state_dict())


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


def test_mistake__out_is_no_pickle(refused, files):
    line = refused('test.py', files / 'plain.py', files / 'teacher/teacher.pth', '--out', 'x.json')
    assert '--out must be a .pkl file, got x.json' in line


def test_mistake__launcher_without_torchrun(refused, files, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    line = refused('train.py', files / 'distilled.py', '--launcher', 'pytorch')
    assert 'is for torchrun' in line


@pytest.mark.parametrize('shared', [False, True])
def test_train__reads_the_teacher_for_the_run_once_and_keeps_nothing(files, tmp_path, shared):
    cfg = Config.fromfile(files / 'distilled.py')
    if shared:  # mapped from the file; the report reads it in the usual way
        cfg.model.teacher.update(fuse=False, channels_last=False, share_weights=True)
    cfg.dump(tmp_path / 'config.py')
    checkpoints.forget_kept_checkpoints()
    accelerated = mock.patch('rdimkd_det.teacher.accelerate', wraps=accelerate)
    with accelerated as accelerated, mock.patch('torch.load', wraps=torch.load) as read:
        call_tool('train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'work')
    assert accelerated.call_count == 1
    read = [call.kwargs for call in read.call_args_list if 'teacher.pth' in str(call.args[0])]
    assert len(read) == 1 + shared
    assert not checkpoints._kept


# Overrides


@pytest.mark.parametrize(
    'typed, value',
    [
        ('data/my data/', 'data/my data/'),
        ('"data/my  data (old)/"', 'data/my  data (old)/'),
        (' 0.5 ', 0.5),
        ('1e-3', 0.001),
        ('None', None),
        ('true', True),
        ('1 000', '1 000'),
        ('1,2, 3', [1, 2, 3]),
        ('[a, b]', ['a', 'b']),
        ("['red', 'light green' , b]", ['red', 'light green', 'b']),
        ('( big ship, [1, ( x y ,2)] )', ('big ship', [1, ('x y', 2)])),
        ('[]', []),
        ("('ship',)", ('ship',)),
    ],
)
def test_options__spaces_inside_of_a_value_are_kept(typed, value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction)
    options = parser.parse_args(['--cfg-options', 'a.b=x=y', f'c={typed}']).cfg_options
    assert options == {'a.b': 'x=y', 'c': value}
    if ' ' not in typed:
        assert value == DictAction._parse_iterable(typed)


def test_options__a_path_with_a_space_is_the_one_that_was_typed(refused, files):
    root = 'train_dataloader.dataset.data_root=no such data/'
    line = refused('train.py', files / 'plain.py', '--cfg-options', root)
    assert line.startswith('train.py: train data: no such data/annotations.json does not exist.')


# Files that cannot be read or written


@pytest.mark.parametrize(
    'tool, option, path',
    [
        ('preflight.py', '--json', '/proc/none.json'),
        ('test.py', '--out', '/proc/none/x.pkl'),
        ('distill.py', '--save-config', '/proc/none/x.py'),
        ('analyze_projection.py', '--out', '/proc/none.png'),
        ('visualize.py', '--out', '/proc/none/x.png'),
        ('report.py', '--out', '/proc/none/x.html'),
    ],
)
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='needs /proc, where nobody can write')
def test_file__that_cannot_be_written(files, capsys, tool, option, path):
    """The paths fail even for root; each tool reports this before it starts working."""
    teacher = files / 'teacher/teacher.py', files / 'teacher/teacher.pth'
    arguments = {
        'preflight.py': (files / 'distilled.py', '--samples', 0),
        'test.py': teacher,
        'distill.py': (files / 'plain.py', *teacher, '--dim', 8),
        'analyze_projection.py': (files / 'distilled.py',),
        'visualize.py': (files / 'distilled.py', teacher[1], files / 'data/images/0.png'),
        'report.py': (files,),
    }
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, *arguments[tool], option, path)
    assert stopped.value.code == 2
    assert one_line(tool, capsys.readouterr().err) == (
        f'{tool}: {option} {path} cannot be written: No such file or directory; give a file in an '
        f'existing directory that you may write to.'
    )


def test_output__that_nobody_reads_any_more_ends_without_a_word(tmp_path):
    command = [sys.executable, REPOSITORY / 'tools/make_digits.py', '--out', tmp_path / 'digits']
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*command, '--num-train', '1', '--num-val', '1'], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b'')


def test_file__json_is_a_directory(refused, files, tmp_path):
    line = refused('preflight.py', files / 'distilled.py', '--json', tmp_path)
    assert line == f'preflight.py: --json {tmp_path} is a directory; give the name of a file.'


@pytest.mark.parametrize('path', ['/dev/stdout', 'pipe'])
def test_file__that_is_a_device_stays_one(refused, files, tmp_path, path):
    os.mkfifo(tmp_path / 'pipe')
    path = tmp_path / path  # '/dev/stdout' as it is
    line = refused('preflight.py', files / 'distilled.py', '--samples', 0, '--json', path)
    assert line.startswith(f'preflight.py: --json {path} is a device or pipe, ')
    assert (tmp_path / 'pipe').is_fifo()


@pytest.mark.parametrize('place', ['train_dataloader.dataset', 'val_evaluator'])
def test_annotations__that_cannot_be_read_are_named(files, tmp_path, capsys, place):
    whole = (files / 'data/annotations.json').read_text()
    for name, content in (('cut.json', whole[:500]), ('broken.json', whole.replace('"id"', 'id'))):
        (tmp_path / name).write_text(content)
    for name, expected in (
        ('cut.json', f'annotations {tmp_path}/cut.json are cut off or damaged: Unterminated'),
        ('broken.json', f'annotations {tmp_path}/broken.json are cut off or damaged: Expecting'),
        ('', f'{tmp_path}: Is a directory.'),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call_tool(
                *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work'),
                *('--cfg-options', f'{place}.ann_file={tmp_path / name}'),
            )
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f'train.py: {expected}')


NEEDS = 'each needs id, image_id, category_id, bbox ([x, y, width, height]) and area.'


def first(**changes):
    """Return a function that changes the first annotation; values of None drop their keys."""

    def change(content):
        entry = content['annotations'][0]
        entry.update(changes)
        content['annotations'][0] = {k: v for k, v in entry.items() if v is not None}

    return change


def without_images_of_size(content):
    content['images'] = [{**image, 'width': 20} for image in content['images']]


@pytest.mark.parametrize(
    'change, expected',
    [
        (first(area=None), "annotations FILE lack 'area' in the annotation {'bbox': [22, 8, 19, "),
        (first(bbox=None), "annotations FILE lack 'bbox' in the annotation {'area': 551, "),
        (first(image_id=None), "annotations FILE lack 'image_id' in the annotation {'area': 551, "),
        (
            first(category_id=None),
            "annotations FILE lack 'category_id' in the annotation {'area': ",
        ),
        (first(bbox=[3, 4]), 'annotations FILE cannot be used (ValueError: not enough values to '),
        (lambda content: content.pop('categories'), "annotations FILE lack 'categories'."),
        (
            lambda content: content['images'][0].pop('file_name'),
            "annotations FILE lack 'file_name' in the image {'height': 64, 'id': 0, 'img_id': 0, "
            "'width': 80}; "
            'each needs id, file_name, width and height.',
        ),
        (
            lambda content: content['categories'][1].pop('name'),
            "annotations FILE lack 'name' in the category {'id': 1}; each needs id and name.",
        ),
        (
            lambda content: content.update(annotations=[]),
            'the training set has no image with a box of your classes (red, green, blue), and of '
            '32 pixels or more (filter_cfg.min_size), in FILE; compare metainfo.classes with its '
            'categories, and see whether it has annotations.',
        ),
        (without_images_of_size, 'the training set has no image with a box of your classes (red, '),
    ],
)
def test_annotations__what_they_lack_is_named(files, tmp_path, capsys, change, expected):
    content, file = json.loads((files / 'data/annotations.json').read_text()), tmp_path / 'a.json'
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stopped:
        call_tool(
            *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work', '--cfg-options'),
            f'train_dataloader.dataset.ann_file={file}',
            'train_dataloader.dataset.filter_cfg.filter_empty_gt=True',
            'train_dataloader.dataset.filter_cfg.min_size=32',
        )
    assert stopped.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith('train.py: ' + expected.replace('FILE', str(file)))
    if 'annotation {' in line:
        assert line.endswith(NEEDS)


@pytest.mark.parametrize('tool', ['analyze_projection.py', 'cache_teacher.py'])
def test_annotations__damaged_ones_are_named_by_tools_that_only_look(
    files, config, tmp_path, capsys, tool
):
    cut, out = tmp_path / 'cut.json', tmp_path / 'out.png'
    cut.write_text((files / 'data/annotations.json').read_text()[:500])
    path = config(lambda cfg: cfg['train_dataloader']['dataset'].update(ann_file=str(cut)))
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, path, '--out', out)
    assert stopped.value.code == 2
    line = one_line(tool, capsys.readouterr().err)
    assert line.startswith(f'{tool}: annotations {cut} are cut off or damaged: ')
    assert not out.exists()


def test_image__is_named_in_a_plain_training_too(files, tmp_path):
    image = tmp_path / 'images' / '3.png'
    shutil.copytree(files / 'data/images', image.parent)
    image.write_bytes(b'')
    done = run_tool(
        *('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work', '--cfg-options'),
        f'train_dataloader.dataset.data_prefix.img={image.parent}',
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f'train.py: image {image} cannot be read (')


def test_annotations__byte_order_mark(files, tmp_path, capsys):
    text = (files / 'data/annotations.json').read_text()
    (tmp_path / 'bom.json').write_text(text, encoding='utf-8-sig')
    option = f'train_dataloader.dataset.ann_file={tmp_path}/bom.json'
    arguments = ('--work-dir', tmp_path / 'work', '--cfg-options', option)
    for tool, config in (('train.py', 'plain.py'), ('preflight.py', 'distilled.py')):
        with pytest.raises(SystemExit) as stopped:
            call_tool(tool, files / config, *arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == (
            f'{tool}: annotations {tmp_path}/bom.json begin with a byte order mark; save the file '
            f'as UTF-8 without one.'
        )


def test_work_dir__that_cannot_be_made_is_named(files, tmp_path, capsys, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.EROFS, 'Read-only file system', path)

    monkeypatch.setattr('mmengine.runner.runner.mmengine.mkdir_or_exist', full)
    with pytest.raises(SystemExit) as stopped:
        call_tool('train.py', files / 'plain.py', '--work-dir', tmp_path / 'work')
    assert stopped.value.code == 2
    line = one_line('train.py', capsys.readouterr().err)
    assert line == f'train.py: {tmp_path}/work: Read-only file system.'
