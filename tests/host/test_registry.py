"""Every OpenMMLab scope finds the package's classes, and each model is built in its own scope."""

import time

import pytest
import torch
from detectors import random_batch, teacher_files
from mmdet.registry import HOOKS, MODELS
from mmengine import registry as root
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope, Registry
from runs import distilled, fcos

from rdimkd_det import DistillHook, RandomProjection, RdimKDDistiller, RdimKDLoss
from rdimkd_det.commands.hook_options import distill_hooks
from rdimkd_det.options import check_type

OURS = {
    'RdimKDDistiller': (MODELS, RdimKDDistiller),
    'RdimKDLoss': (MODELS, RdimKDLoss),
    'RandomProjection': (MODELS, RandomProjection),
    'DistillHook': (HOOKS, DistillHook),
}
RANDOM = dict(type='RandomProjection', dim=4)


@pytest.fixture(scope='module')
def sibling():
    """Registries of a sibling of mmdet, with one hook and one detector of its own."""
    models = Registry('model', parent=root.MODELS, scope='sibling')
    hooks = Registry('hook', parent=root.HOOKS, scope='sibling')
    hooks.register_module(name='SwitchOfSibling', module=type('Switch', (Hook,), {}))
    models.register_module(name='DetectorOfSibling', module=MODELS.get('FCOS'))
    yield models
    for parent in (root.MODELS, root.HOOKS):
        del parent.children['sibling']


@pytest.fixture(params=['mmdet', 'sibling'])
def scope(request, sibling):
    DefaultScope.get_instance(f'scope{time.time()}', scope_name=request.param)
    return request.param


@pytest.mark.parametrize('name', OURS)
@pytest.mark.parametrize('prefix', ['', 'mmdet.', 'rdimkd_det.', 'mmengine.'])
def test_find__with_every_prefix_in_every_scope(scope, name, prefix):
    registry, kind = OURS[name]
    with registry.switch_scope_and_registry(None) as found:
        assert found.scope == scope
        assert found.get(prefix + name) is kind
    assert check_type(dict(type=prefix + name), 'here', registry, [name]) is kind


def test_check__hooks_of_the_configs_scope(sibling):
    hooks = [dict(type='SwitchOfSibling'), dict(type='DistillHook', calibration_images=3)]
    with DefaultScope.overwrite_default_scope('sibling'):
        (hook,) = distill_hooks(Config(dict(custom_hooks=hooks)))
    assert hook.calibration_images == 3


def test_build__student_of_another_scope_and_teacher_of_mmdet(sibling, tmp_path):
    config, checkpoint = teacher_files(
        tmp_path, Config(dict(model=fcos(16, 24), default_scope='mmdet'))
    )
    student = fcos()
    student.type = 'DetectorOfSibling'
    for part in ('data_preprocessor', 'backbone', 'neck', 'bbox_head'):
        student[part]['_scope_'] = 'mmdet'
    model = distilled(student, dict(config=config, checkpoint=checkpoint), projection=RANDOM)
    with DefaultScope.overwrite_default_scope('sibling'):
        built = MODELS.build(model).train()
        data = built.data_preprocessor(random_batch(num_classes=3), training=True)
        losses = built(**data, mode='loss')
    assert isinstance(built, RdimKDDistiller)
    assert all(torch.isfinite(losses[f'loss_rdimkd_neck_s{s}']) for s in (8, 16, 32))
