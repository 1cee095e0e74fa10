"""Each family of MMDetection and MMYOLO as a student and as a teacher, from its own config.

Checks one training step on small images: finite losses, gradients in the student's backbone, and
predictions afterwards. ``docs/pairs.md`` lists the tested pairs.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from detectors import check_training_step, random_batch, small_config, teacher_files
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

import rdimkd_det  # noqa: F401 - registers its types

FAMILIES = {
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'retinanet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'retinanet-pvt': 'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py',
    'gfl': 'gfl/gfl_r50_fpn_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'tood': 'tood/tood_r50_fpn_1x_coco.py',
    'reppoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'faster-rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'cascade-rcnn-resnext': 'cascade_rcnn/cascade-rcnn_x101-32x4d_fpn_1x_coco.py',
    'mask-rcnn-swin': 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
    'yolox': 'yolox/yolox_tiny_8xb8-300e_coco.py',
    'rtmdet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'centernet': 'centernet/centernet-update_r18_fpn_8xb8-amp-lsj-200e_coco.py',
    'deformable-detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'solov2': 'solov2/solov2_r50_fpn_1x_coco.py',
    'yolov3-mobilenetv2': 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
    'ssd': 'ssd/ssd300_coco.py',
}
# On their fast data path, which hands the samples of a batch on as a dict.
MMYOLO = {
    'mmyolo-yolov5': 'mmyolo::yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py',
    'mmyolo-yolov6': 'mmyolo::yolov6/yolov6_n_syncbn_fast_8xb32-400e_coco.py',
    'mmyolo-yolov7': 'mmyolo::yolov7/yolov7_tiny_syncbn_fast_8x16b-300e_coco.py',
    'mmyolo-yolov8': 'mmyolo::yolov8/yolov8_n_syncbn_fast_8xb16-500e_coco.py',
    'mmyolo-yolox': 'mmyolo::yolox/yolox_nano_fast_8xb8-300e_coco.py',
    'mmyolo-ppyoloe': 'mmyolo::ppyoloe/ppyoloe_plus_s_fast_8xb8-80e_coco.py',
    'mmyolo-rtmdet': 'mmyolo::rtmdet/rtmdet_tiny_syncbn_fast_8xb32-300e_coco.py',
}
# Student and teacher: each family once on either side, mostly across families.
PAIRS = list(zip(FAMILIES, [*list(FAMILIES)[1:], next(iter(FAMILIES))]))
needs_mmyolo = pytest.mark.skipif(not find_spec('mmyolo'), reason='mmyolo is not installed')
ACROSS = [*zip(MMYOLO, [*list(MMYOLO)[1:], 'fcos']), ('retinanet', 'mmyolo-yolov5')]
SMALLER = {
    'tood': dict(channels=64),  # its head normalises groups of 32 channels, twice
    'deformable-detr': dict(channels=256),  # as wide as its transformer
    'cascade-rcnn-resnext': dict(backbone=dict(depth=50, groups=8)),
}
# Its extra layers have no padding: nothing of a smaller image would be left for the last one.
LARGER_IMAGES = {'ssd': [(300, 300), (300, 300)]}
WITH_MASKS = ('mask-rcnn-swin', 'solov2')


def config_of(family):
    config = small_config({**FAMILIES, **MMYOLO}[family], **SMALLER.get(family, {}))
    preprocessor = config.model.data_preprocessor
    if family in ('mmyolo-yolox', 'mmyolo-ppyoloe'):  # their preprocessors need the augmentation
        preprocessor.batch_augments[0].random_size_range = (96, 128)
    elif preprocessor.get('batch_augments'):
        preprocessor.batch_augments = None  # 1024 pixels are too many here
    return config


def batch(student, teacher):
    size = LARGER_IMAGES.get(student) or LARGER_IMAGES.get(teacher) or [(96, 128), (128, 112)]
    data = random_batch(size=size, num_classes=80)
    if student not in WITH_MASKS:
        return data
    for image, sample in zip(data['inputs'], data['data_samples']):
        height, width = image.shape[1:]
        masks = np.zeros((2, height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, sample.gt_instances.bboxes.tensor.int().tolist()):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
    return data


def training_batch(student, teacher):
    if student not in MMYOLO:
        return batch(student, teacher)
    from mmyolo.datasets.utils import yolov5_collate

    data = random_batch(size=(96, 128), num_classes=80)
    items = [dict(zip(data, item)) for item in zip(*data.values())]
    return yolov5_collate(items, use_ms_training=student == 'mmyolo-ppyoloe')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('student', 'teacher'), [*PAIRS, *(pytest.param(*pair, marks=needs_mmyolo) for pair in ACROSS)]
)
def test_pair__trains_one_step(student, teacher, tmp_path):
    config_file, checkpoint = teacher_files(tmp_path, config_of(teacher))
    loss = dict(type='RdimKDLoss', projection=dict(type='RandomProjection', dim=16))
    config = config_of(student)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(
            ConfigDict(
                type='RdimKDDistiller',
                student=config.model,
                teacher=dict(config=config_file, checkpoint=checkpoint),
                losses=dict(neck=loss),
            )
        )
    model.init_weights()  # the DETR family leaves memory as it finds it until then
    for clock in ('iter', 'epoch'):  # YOLOX and TOOD read them, as a Runner sets them
        MessageHub.get_instance('families').update_info(clock, 0)
    check_training_step(model, training_batch(student, teacher))
    assert not any(p.requires_grad for p in model.distill.teacher._network.parameters())

    model.eval()
    with torch.no_grad():
        predictions = model(
            **model.data_preprocessor(batch(student, teacher), training=False), mode='predict'
        )
    assert len(predictions) == 2 and 'pred_instances' in predictions[0]


def test_pair__every_family_on_both_sides():
    students, teachers = zip(*PAIRS)
    assert set(students) == set(teachers) == set(FAMILIES)
    students, teachers = zip(*ACROSS)
    assert set(students) >= set(MMYOLO) and set(teachers) >= set(MMYOLO)
