"""Teachers of timm, which needs a torchvision that loads."""

import pytest
from mmdet.registry import MODELS
from runs import fcos
from torch import nn

from rdimkd_det.features import OUTPUT
from rdimkd_det.teacher.build import build_teacher
from rdimkd_det.teacher.known_input import known_input


def test_input__of_timm():
    module = nn.Conv2d(3, 8, 8, 8)
    module.pretrained_cfg = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5), url='...')
    found = known_input(module)
    assert found.mean == [127.5] * 3 and found.std == [127.5, 63.75, 127.5]


def test_timm__features_only():
    pytest.importorskip('timm', reason='timm is not installed', exc_type=ImportError)
    module = dict(type='timm.create_model', model_name='resnet18', features_only=True)
    preprocessor = MODELS.build(fcos()).data_preprocessor
    entry = dict(module=dict(module, out_indices=(2, 3, 4)))
    teacher, *_ = build_teacher(entry, {'neck': {}}, preprocessor, (8, 16, 32))
    assert [level.stride for level in teacher.probe()[OUTPUT]] == [8, 16, 32]
    assert teacher.source.input['mean'] == pytest.approx([123.675, 116.28, 103.53])
