"""MMDetection's hooks and constructors that access the model's parts find a plain student."""

from types import SimpleNamespace
from unittest import mock

import pytest
from detectors import small_config
from mmdet.engine.hooks import YOLOXModeSwitchHook
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor
from mmdet.models import ResNet
from mmdet.registry import MODELS
from runs import distilled, fcos, write_teacher

RANDOM = dict(type='RandomProjection', dim=8)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp('teacher'))


def test_yolox_mode_switch__adds_the_l1_loss(teacher):
    student = small_config('yolox/yolox_tiny_8xb8-300e_coco.py').model
    model = MODELS.build(distilled(student, teacher, projection=RANDOM))
    runner = SimpleNamespace(
        epoch=9, max_epochs=10, model=model, train_dataloader=mock.MagicMock(), logger=mock.Mock()
    )
    assert model.bbox_head.use_l1 is False
    YOLOXModeSwitchHook(num_last_epochs=1).before_train_epoch(runner)
    assert model.bbox_head.use_l1 is True


@MODELS.register_module()
class ResNetNamedConvNeXt(ResNet):
    """The optimizer's constructor checks only the class name."""


def test_layer_wise_lr_decay__groups_of_the_student_stay(teacher):
    student = fcos()
    student.backbone.type = 'ResNetNamedConvNeXt'
    plain = MODELS.build(student)
    model = MODELS.build(distilled(student, teacher, projection=RANDOM))
    constructor = LearningRateDecayOptimizerConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
        paramwise_cfg=dict(decay_rate=0.8, decay_type='stage_wise', num_layers=6),
    )

    def groups(detector):
        found = constructor(detector).optimizer.param_groups
        return {
            (name, group['lr'], group['weight_decay'])
            for group in found
            for name in group['param_names']
        }

    distilling = groups(model)
    own = {group for group in distilling if group[0].startswith('distill.')}
    assert distilling - own == groups(plain)
    assert len(own) == 6  # a weight and a bias for the adapter of each level
