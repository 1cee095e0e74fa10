"""Modules of the student that start from the teacher's weights."""

import pytest
import torch
from mmdet.registry import MODELS
from runs import distilled, fcos, load, run_config, train, write_data, write_teacher

from rdimkd_det import ConfigError
from rdimkd_det.distiller.inheritance import inherit_weights


def test_inherit_weights__copies_what_is_named():
    student, teacher = MODELS.build(fcos()), MODELS.build(fcos(base_channels=16)).state_dict()
    head = {key: value.clone() for key, value in student.bbox_head.state_dict().items()}
    copied = inherit_weights(student, teacher, ['neck.fpn_convs'])
    assert copied == {'neck.fpn_convs': 6}
    for key, value in student.neck.fpn_convs.state_dict().items():
        assert torch.equal(value, teacher[f'neck.fpn_convs.{key}'])
    assert all(
        torch.equal(value, head[key]) for key, value in student.bbox_head.state_dict().items()
    )


def test_inherit_weights__refuses_other_shapes_and_copies_nothing():
    student, teacher = MODELS.build(fcos()), MODELS.build(fcos(base_channels=16)).state_dict()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(
        ConfigError,
        match=r"inherit 'neck': 3 of 12 .*weight \(16, 16, 1, 1\) from \(16, 32, 1, 1\)",
    ):
        inherit_weights(student, teacher, ['bbox_head', 'neck'])
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_inherit_weights__lists_modules():
    with pytest.raises(ConfigError, match=r"^inherit 'head'.*'bbox_head'"):
        inherit_weights(MODELS.build(fcos()), {}, ['head'])


def test_inherit__in_a_training_and_not_again_when_resumed(tmp_path):
    data, teacher = write_data(tmp_path / 'data'), write_teacher(tmp_path, fpn_channels=16)
    model = distilled(fcos(), teacher, loss_weight=0)
    model.inherit = ['bbox_head']
    still = {'optim_wrapper.optimizer.lr': 0.0}
    # As a job does that is always started with `resume`.
    train(run_config(data, tmp_path / 'run', model, max_epochs=1, resume=True, **still))
    expected = load(tmp_path / 'teacher.pth')['state_dict']
    checkpoint = load(tmp_path / 'run/epoch_1.pth')
    key = 'bbox_head.conv_cls.weight'
    assert torch.equal(checkpoint['state_dict'][key], expected[key])

    checkpoint['state_dict'][key].fill_(0.5)
    torch.save(checkpoint, tmp_path / 'run/epoch_1.pth')
    train(run_config(data, tmp_path / 'run', model, max_epochs=2, resume=True, **still))
    assert load(tmp_path / 'run/epoch_2.pth')['state_dict'][key].eq(0.5).all()
