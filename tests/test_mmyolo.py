"""Trainings of MMYOLO's detectors on their fast data path, by the tools: here a thin YOLOv8."""

import json
import re
from pathlib import Path

import pytest
import torch
from command_lines import one_line
from detectors import teacher_files
from mmengine.config import Config
from runs import (
    CLASSES,
    assert_equal,
    call_tool,
    distilled,
    fcos,
    load,
    run_config,
    trained_losses,
    write_data,
)

pytest.importorskip('mmyolo', reason='mmyolo is not installed')
pytestmark = pytest.mark.slow

SCALE = (64, 64)
YOLOV8 = """
_base_ = ['mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py']
model = dict(
    backbone=dict(deepen_factor=0.1, widen_factor={width}),
    neck=dict(deepen_factor=0.1, widen_factor={width}),
    bbox_head=dict(head_module=dict(num_classes=3, widen_factor={width})),
    train_cfg=dict(assigner=dict(num_classes=3)),
)
"""


def yolov8(folder: Path, width: float) -> Config:
    path = folder / f'yolov8_{width}.py'
    path.write_text(YOLOV8.format(width=width))
    return Config.fromfile(path)


def student_config(data: Path, folder: Path) -> Path:
    """Write the config of a YOLOv8 with mosaic until the last epoch, on the small data set."""
    config = yolov8(folder, 0.125)
    loading, mosaic, affine, *last = config.train_pipeline[0:2], *config.train_pipeline[2:]
    mosaic.update(img_scale=SCALE)
    affine.update(border=(-32, -32))
    resize = [dict(type=kind, scale=SCALE) for kind in ('YOLOv5KeepRatioResize', 'LetterResize')]
    last = last[1:]  # without Albu, whose package need not be installed
    dataset = dict(
        type='YOLOv5CocoDataset',
        data_root=str(data),
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
    )
    plain = run_config(data, folder / 'plain', fcos())  # for what is not of the data
    config.train_dataloader.dataset = dict(dataset, pipeline=[*loading, mosaic, affine, *last])
    config.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    ending = config.test_pipeline[-2:]
    config.val_dataloader.dataset = dict(
        dataset, test_mode=True, pipeline=[loading[0], *resize, *ending]
    )
    config.val_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.test_dataloader = config.val_dataloader
    config.val_evaluator.ann_file = str(data / 'annotations.json')
    config.test_evaluator = config.val_evaluator
    config.train_cfg.update(max_epochs=2, val_interval=2, dynamic_intervals=None)
    config.default_hooks.param_scheduler.max_epochs = 2
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    config.default_hooks.logger = dict(type='LoggerHook', interval=1)
    config.custom_hooks[1].update(switch_epoch=1, switch_pipeline=[*loading, *resize, *last])
    del config.visualizer['name']  # of one name, the first run's is used again
    for key in ('env_cfg', 'randomness', 'log_level'):
        config[key] = plain[key]
    config.dump(folder / 'student.py')
    return folder / 'student.py'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Folder with the data set, a student's config, a teacher, and a run of two epochs."""
    folder = tmp_path_factory.mktemp('mmyolo')
    write_data(folder / 'data')
    student = student_config(folder / 'data', folder)
    teacher = teacher_files(folder, yolov8(folder, 0.25))
    call_tool('distill.py', student, *teacher, '--work-dir', folder / 'run')
    return folder


def test_run__learns_from_the_teacher_with_mosaic_and_without(made):
    losses = trained_losses(made / 'run')
    assert len(losses) == 4
    assert all(loss[f'loss_rdimkd_neck_s{s}'] > 0 for loss in losses for s in (8, 16, 32))


def test_resume__equals_the_uninterrupted_run(made, tmp_path, caplog):
    config = made / 'run/student.py'
    call_tool('train.py', config, '--work-dir', tmp_path, '--resume', made / 'run/epoch_1.pth')
    found, wanted = load(tmp_path / 'epoch_2.pth'), load(made / 'run/epoch_2.pth')
    assert_equal(found['state_dict'], wanted['state_dict'])
    assert 'the checkpoint goes on with' not in caplog.text


def test_preflight__measures_with_a_teacher_of_mmdetection(made, capsys):
    """The other way across: a student of MMYOLO, a teacher of MMDetection."""
    (made / 'fcos').mkdir()
    teacher, config = Config(dict(default_scope='mmdet', model=fcos(16, 24))), made / 'across.py'
    files = teacher_files(made / 'fcos', teacher)
    weights = load(files[1])
    torch.save({**weights, 'meta': dict(dataset_meta=dict(classes=CLASSES))}, files[1])
    call_tool('distill.py', made / 'student.py', *files, '--save-config', config, '--force')
    options = '--samples', 4, '--eval-teacher', '--work-dir', made / 'unused'
    with pytest.raises(SystemExit):
        call_tool('preflight.py', config, *options, '--json', made / 'report.json')
    report = json.loads((made / 'report.json').read_text())
    assert {it['topic'] for it in report['findings'] if it['severity'] == 'error'} <= {
        'Teacher weights',  # they are random
        'Teacher AP',
    }
    assert report['figures']['recommended_loss_weight']['neck'] > 0
    assert report['figures']['teacher_ap']['Teacher AP'].keys() == {'bridge', 'own'}


def test_train__student_of_mmdetection_and_teacher_of_mmyolo(made, tmp_path):
    teacher = dict(config=str(made / 'teacher.py'), checkpoint=str(made / 'teacher.pth'))
    config = run_config(made / 'data', tmp_path, distilled(fcos(), teacher), max_epochs=1)
    config.dump(tmp_path / 'config.py')
    call_tool('train.py', tmp_path / 'config.py')
    assert all(loss['loss_rdimkd_neck_s8'] > 0 for loss in trained_losses(tmp_path))


def test_export__is_tested_as_a_plain_student(made, tmp_path):
    call_tool('export_student.py', made / 'run/epoch_2.pth', '--out', tmp_path / 'student.pth')
    (exported,) = tmp_path.glob('student-*.pth')
    call_tool('test.py', made / 'student.py', exported, '--work-dir', tmp_path)


def test_images_for_the_teacher__are_larger_through_the_whole_pipeline(made, tmp_path, capsys):
    teacher = made / 'teacher.py', made / 'teacher.pth'
    options = '--teacher-scale', 2, '--save-config', tmp_path / 'config.py'
    call_tool('distill.py', made / 'student.py', *teacher, *options)
    assert 'LetterResize.scale (64, 64) -> (128, 128)' in capsys.readouterr().out
    short = '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9'
    call_tool('train.py', tmp_path / 'config.py', '--work-dir', tmp_path / 'run', *short)
    assert trained_losses(tmp_path / 'run')[0]['loss_rdimkd_neck_s8'] > 0


def test_labels_none__mosaic_of_images_without_labels(made, tmp_path):
    """Off the fast data path, which drops what says that they have none."""
    teacher = made / 'teacher.py', made / 'teacher.pth'
    options = '--unlabelled', made / 'data/images', '--labels', 'none', '--work-dir', tmp_path
    call_tool(
        'distill.py',
        *(made / 'student.py', *teacher, *options, '--cfg-options', 'train_cfg.max_epochs=1'),
        'train_dataloader.collate_fn.type=pseudo_collate',
        'model.student.data_preprocessor.type=mmdet.DetDataPreprocessor',
    )
    assert all(loss['loss'] > 0 and 'loss_cls' not in loss for loss in trained_losses(tmp_path))


@pytest.mark.parametrize(
    ('tool', 'options', 'message'),
    [
        ('cache_teacher.py', ['--out', 'CACHE'], 'yolov5_collate, so that .* live teacher'),
        (
            'train.py',
            ['--cfg-options', 'default_scope=mmyol'],
            'the package mmyol cannot be imported',
        ),
    ],
)
def test_refused__in_one_line(made, tool, options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call_tool(tool, made / 'run/student.py', *options)
    assert stopped.value.code == 2
    line = one_line(tool, capsys.readouterr().err)
    assert re.search(message, line), line
