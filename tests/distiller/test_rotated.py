"""Rotated detectors of MMRotate as students and teachers, also across with MMDetection's."""

import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectors import check_training_step, random_batch, small_config, teacher_files
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope
from runs import call_tool, load, trained_losses

from rdimkd_det import ConfigError, distill_config
from rdimkd_det.benchmark.operations import count_operations
from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.distiller.image_scale import scaled_boxes

pytest.importorskip('mmrotate', reason='MMRotate is not installed')
MMROTATE = {
    'rotated-retinanet': 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    'rotated-fcos': 'rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py',
    'rotated-atss': 'rotated_atss/rotated-atss-le90_r50_fpn_1x_dota.py',
    'rotated-rtmdet': 'rotated_rtmdet/rotated_rtmdet_tiny-3x-dota.py',
    'oriented-rcnn': 'oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py',
    's2anet': 's2anet/s2anet-le90_r50_fpn_1x_dota.py',
}
FAMILIES = {name: f'mmrotate::{path}' for name, path in MMROTATE.items()}
FAMILIES['gfl'] = 'gfl/gfl_r50_fpn_1x_coco.py'  # of MMDetection
PAIRS = list(zip(FAMILIES, [*list(FAMILIES)[1:], next(iter(FAMILIES))]))
CLASSES = ('ship', 'plane')


@pytest.fixture(autouse=True)
def scope_of_the_other_tests():
    """Leave MMDetection's scope behind; a tool enters that of its config for good."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def config_of(family):
    config = small_config(FAMILIES[family], depth=None if 'rtmdet' in family else 18)
    if 'rcnn' in family:
        for proposals in (config.model.train_cfg.rpn_proposal, config.model.test_cfg.rpn):
            proposals.max_per_img = 50
    return config


def batch(rotated):
    data = random_batch(size=[(96, 128), (128, 112)], num_classes=15)
    for sample in data['data_samples'] if rotated else ():
        for instances in (sample.gt_instances, sample.ignored_instances):
            instances.bboxes = instances.bboxes.convert_to('rbox')
            instances.bboxes.tensor[:, 4] += 0.3
    return data


@pytest.mark.slow
@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
def test_pair__trains_one_step(student, teacher, tmp_path):
    config, of_teacher = config_of(student), config_of(teacher)
    config_file, checkpoint = teacher_files(tmp_path, of_teacher)
    model = distilled(config.model, dict(config=config_file, checkpoint=checkpoint))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        check_step(MODELS.build(model), rotated=config.default_scope == 'mmrotate')


def distilled(student, teacher):
    loss = dict(type='RdimKDLoss', projection=dict(type='RandomProjection', dim=16))
    return ConfigDict(
        type='RdimKDDistiller', student=student, teacher=teacher, losses=dict(neck=loss)
    )


def check_step(model, rotated):
    check_training_step(model, batch(rotated))

    model.eval()
    with torch.no_grad():
        predictions = model(**model.data_preprocessor(batch(rotated)), mode='predict')
    assert predictions[0].pred_instances.bboxes.shape[1] == (5 if rotated else 4)


@pytest.mark.parametrize(
    'name', ['h2rbox/h2rbox-le90_r50_fpn_adamw-1x_dota', 'h2rbox_v2/h2rbox_v2-le90_r50_fpn-1x_dota']
)
def test_h2rbox__teaches_and_does_not_learn(name, tmp_path):
    """It can be imported without torchvision; its loss shows the student other images."""
    detector = small_config(f'mmrotate::{name}.py', depth=18)
    config_file, checkpoint = teacher_files(tmp_path, detector)
    teacher = dict(config=config_file, checkpoint=checkpoint)
    student = config_of('rotated-retinanet')
    with DefaultScope.overwrite_default_scope('mmrotate'):
        check_step(MODELS.build(distilled(student.model, teacher)), rotated=True)
        with pytest.raises(ConfigError, match=r'student: H2RBox\w*Detector learns from rotated'):
            MODELS.build(distilled(detector.model, teacher))


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Write a data set in DOTA's format, a student's config, and a teacher of another family."""
    root = tmp_path_factory.mktemp('dota')
    write_dota(root / 'data')
    student, teacher = config_of('rotated-retinanet'), config_of('rotated-fcos')
    for config in (student, teacher):
        config.model.bbox_head.num_classes = len(CLASSES)
        for split in ('train', 'val', 'test'):
            on_data(config[f'{split}_dataloader'], root / 'data')
    student.merge_from_dict(
        dict(
            train_cfg=dict(max_epochs=1, val_interval=2),
            default_hooks=dict(logger=dict(interval=1), checkpoint=dict(interval=1)),
            env_cfg=dict(dist_cfg=dict(backend='gloo')),
            log_level='WARNING',
        )
    )
    student.dump(root / 'student.py')
    return SimpleNamespace(student=root / 'student.py', teacher=teacher_files(root, teacher))


def write_dota(root):
    random = np.random.RandomState(0)
    (root / 'images').mkdir(parents=True)
    (root / 'annfiles').mkdir()
    for index in range(4):
        image, lines = random.randint(60, 120, (64, 80, 3)).astype(np.uint8), []
        for label, name in enumerate(CLASSES):
            center = random.uniform([20, 20], [60, 44])
            corners = cv2.boxPoints(
                (center, random.uniform([20, 10], [34, 18]), random.uniform(90))
            )
            cv2.fillPoly(image, [corners.astype(int)], [250 * (it == label) for it in range(3)])
            lines.append(' '.join(f'{it:.1f}' for it in corners.flatten()) + f' {name} 0\n')
        cv2.imwrite(str(root / f'images/{index}.png'), image)
        (root / f'annfiles/{index}.txt').write_text(''.join(lines))


def on_data(loader, root):
    loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    loader.dataset.update(
        data_root=str(root),
        ann_file='annfiles/',
        data_prefix=dict(img_path='images/'),
        metainfo=dict(classes=CLASSES),
    )
    for transform in loader.dataset.pipeline:
        if 'scale' in transform:
            transform.scale = (80, 64)


@pytest.mark.slow
def test_tools__from_a_dota_set_to_a_plain_rotated_detector(files, tmp_path):
    run = tmp_path / 'run'
    distill = ('distill.py', files.student, *files.teacher, '--dim', '8')
    call_tool(*distill, '--work-dir', run)
    call_tool(*distill, '--work-dir', run, '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    losses = trained_losses(run)
    assert all(np.isfinite(value) for step in losses for value in step.values())
    assert losses[-1]['loss_rdimkd_neck_s8'] > 0
    assert load(run / 'epoch_2.pth')['meta']['iter'] == 4

    call_tool('export_student.py', run / 'epoch_2.pth', '--out', tmp_path / 'plain.pth')
    [exported] = tmp_path.glob('plain-*.pth')
    call_tool('test.py', files.student, exported, '--work-dir', tmp_path / 'test')
    [scores] = (tmp_path / 'test').glob('*/*.json')
    assert 'dota/mAP' in json.loads(scores.read_text())


@pytest.mark.parametrize(
    'line, said',
    [
        ('10 10 30 10 30 20 10 20 train 0', "have a box of class 'train', which metainfo.classes"),
        ('10 10 30 10 ship 0', 'cannot be used .* each line needs the 8 coordinates of a box, the'),
    ],
)
def test_annotations__that_cannot_be_used(files, tmp_path, line, said):
    config = Config.fromfile(files.student)
    shutil.copytree(config.train_dataloader.dataset.data_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / 'annfiles/1.txt').write_text(line)
    dataset = {**config.train_dataloader.dataset, 'data_root': str(tmp_path)}
    in_scope, told = DefaultScope.overwrite_default_scope('mmrotate'), errors_explained(config)
    message = f'^annotations {tmp_path}/annfiles/1.txt {said}'
    with pytest.raises(ConfigError, match=message), told, in_scope:
        DATASETS.build(dataset)


@pytest.mark.slow
def test_benchmark__of_rotated_detectors(files, tmp_path):
    config = distill_config(files.student, *files.teacher, loss_weight=1)
    prepare(config)
    subject = Subject(config, 1, (64, 96), torch.device('cpu'))
    assert subject.batch['data_samples'][0].gt_instances.bboxes.tensor.shape[1] == 5
    assert all(operations > 0 for operations in count_operations(subject).values())


@pytest.mark.slow
def test_preflight__evaluates_a_rotated_teacher(files, tmp_path):
    config, report = tmp_path / 'distilled.py', tmp_path / 'report.json'
    call_tool('distill.py', files.student, *files.teacher, '--save-config', config)
    with pytest.raises(SystemExit):
        call_tool('preflight.py', config, '--eval-teacher', '--json', report)
    found = json.loads(report.read_text())
    assert found['figures']['teacher_ap'] == {'Teacher AP': {'bridge': 0.0, 'own': 0.0}}
    errors = [it['topic'] for it in found['findings'] if it['severity'] == 'error']
    assert errors == ['Teacher weights', 'Teacher AP']  # its weights are random


def test_image_scale__rotated_boxes():
    from mmrotate.structures.bbox import RotatedBoxes

    boxes = RotatedBoxes(torch.tensor([[40.0, 20, 16, 8, 0.3]]))
    found = scaled_boxes(boxes, 0.25).tensor
    torch.testing.assert_close(found, torch.tensor([[10.0, 5, 4, 2, 0.3]]))
