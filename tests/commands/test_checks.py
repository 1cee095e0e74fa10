"""Mistakes in configs and checkpoints."""

from pathlib import Path

import pytest
import torch
from command_lines import one_line, plain_weights
from detectors import small_config
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.model import BaseModule
from runs import call_tool, load, run_tool, write_teacher

from rdimkd_det import ConfigError, RdimKDDistiller
from rdimkd_det.commands.checks import (
    check_data,
    check_model,
    check_pretrained,
    check_sections,
)
from rdimkd_det.commands.hook_options import distill_hooks
from rdimkd_det.preflight.classes import check_room_for_classes


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


def test_mistake__config_and_checkpoint_swapped(refused, files):
    teacher = [files / 'teacher/teacher.pth', files / 'teacher/teacher.py']
    told = f'{teacher[0]} is no config, whose name ends with .py, .json, .yaml, .yml; of a '
    assert refused('test.py', *teacher).startswith(f'test.py: {told}')
    line = refused('distill.py', files / 'plain.py', *teacher)
    assert line.startswith(f'distill.py: teacher: config {teacher[0]} cannot be read: {told}')


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
@pytest.mark.parametrize('tool', ['analyze_projection.py', 'principal_angles.py', 'visualize.py'])
def test_mistake__no_model_to_look_at(files, config, tmp_path, capsys, tool, model):
    path, out = config(lambda cfg: cfg.update(model=model)), tmp_path / 'x.png'
    seen = [files / 'teacher/teacher.pth', files / 'data/images/0.png']
    number = {'principal_angles.py': 1, 'visualize.py': 2}.get(tool, 0)
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, path, *seen[:number], '--out', out)
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
        (
            lambda cfg: cfg['model']['student']['bbox_head'].update(num_classes=2),
            "the student's bbox_head has num_classes=2, fewer than the 3 of the data set (red, ",
        ),
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


@pytest.mark.parametrize('distilled', [False, True])
def test_check_model__config_stays_as_it_is(distilled):
    """The run builds it again; DINO writes into its own, and refuses what it has written."""
    model = small_config('dino/dino-4scale_r50_8xb2-12e_coco.py', channels=256).model
    model.encoder.num_layers = model.decoder.num_layers = 1
    if distilled:
        teacher = dict(config='none.py', checkpoint='none.pth')
        losses = dict(neck=dict(type='RdimKDLoss', projection=dict(type='IdentityProjection')))
        model = dict(type='RdimKDDistiller', student=model, teacher=teacher, losses=losses)
    cfg = Config(dict(model=model))
    before = cfg.to_dict()
    check_model(cfg, training=False)
    if distilled:
        MODELS.build(cfg.model)
    assert cfg.to_dict() == before


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
        ('data/digits/gone/', 'tools/make_digits.py'),
        ('data/coco/gone/', 'https://cocodataset.org'),
        # Of others, who have no use for the demo's data or COCO's.
        ('data/house_digits/', 'does not exist. Put the data set there.'),
        ('data/in_coco_format/', 'does not exist. Put the data set there.'),
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


def test_mistake__out_is_no_pickle(refused, files):
    line = refused('test.py', files / 'plain.py', files / 'teacher/teacher.pth', '--out', 'x.json')
    assert '--out must be a .pkl file, got x.json' in line


def test_mistake__nothing_would_be_shown(refused, files):
    options = ('--show', '--cfg-options', 'default_hooks.visualization=None')
    line = refused('test.py', files / 'plain.py', files / 'teacher/teacher.pth', *options)
    assert '--show and --show-dir need default_hooks.visualization=dict(type=' in line


def test_mistake__launcher_without_torchrun(refused, files, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    line = refused('train.py', files / 'distilled.py', '--launcher', 'pytorch')
    assert 'is for torchrun' in line
    monkeypatch.delenv('SLURM_PROCID', raising=False)
    line = refused('train.py', files / 'distilled.py', '--launcher', 'slurm')
    assert '--launcher slurm is for processes started by srun, e.g. tools/slurm_train.sh' in line


# What is no mistake


class OwnLayout(BaseModule):
    """Unpacks its checkpoint itself, as mmdet's Swin does with the published weights."""

    def init_weights(self):
        raise NotImplementedError


def test_check_pretrained__weights_in_the_layout_of_their_backbone(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth'))
    torch.save({'model': {'patch_embed.weight': torch.zeros(2)}}, init_cfg['checkpoint'])
    check_pretrained(OwnLayout(init_cfg))
    with pytest.raises(ConfigError, match='holds no state_dict'):
        check_pretrained(BaseModule(init_cfg))


def test_check_sections__scope_and_length_as_mmengine_takes_them():
    cfg = dict(default_scope=None, train_cfg=dict(type='IterBasedTrainLoop', max_iters=9e4))
    check_sections(Config(cfg))
    cfg['train_cfg']['max_iters'] = 2.5
    with pytest.raises(ConfigError, match=r'max_iters must be a whole number of 1 .* got 2\.5'):
        check_sections(Config(cfg))


@pytest.fixture
def cfg(files):
    return Config.fromfile(files / 'distilled.py')


def test_check_data__annotations_that_are_read_elsewhere(cfg):
    cfg.train_dataloader.dataset.ann_file = 'on_a_server.json'
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')
    assert check_data(cfg, ['train']).findings == []
    cfg.train_dataloader.dataset.backend_args = dict(backend='local')
    with pytest.raises(ConfigError, match=r'on_a_server\.json does not exist'):
        check_data(cfg, ['train'])


def test_check_model__batch_norm_that_asks_for_a_process_group(cfg):
    """mmcv's SyncBatchNorm does when it is built; the Runner starts the group later."""
    cfg.model.student.backbone.norm_cfg = dict(type='MMSyncBN')
    with pytest.raises(ConfigError, match='the model cannot be built'):
        check_model(cfg, training=False)
    cfg.launcher = 'pytorch'
    check_model(cfg, training=False)
    assert not torch.distributed.is_initialized()


@HOOKS.register_module()
def make_hook(**options):
    return Hook()


def test_distill_hooks__beside_one_that_a_function_makes(cfg):
    cfg.custom_hooks.append(dict(type='make_hook'))
    assert len(distill_hooks(cfg)) == 1


@pytest.mark.parametrize(
    'name', ['rpn/rpn_r50_fpn_1x_coco.py', 'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py']
)
def test_check_room_for_classes__of_proposals_and_of_things_alone(name):
    """RPN has one class for all, and boxes are of 80 of 133 panoptic classes."""
    cfg, small = get_config(f'mmdet::{name}'), small_config(name)
    check_room_for_classes(cfg, MODELS.build(small.model))
    if 'panoptic' in name:
        small.model.roi_head.bbox_head.num_classes = 79
        with pytest.raises(ConfigError, match='fewer than the 80 of the data set'):
            check_room_for_classes(cfg, MODELS.build(small.model))
