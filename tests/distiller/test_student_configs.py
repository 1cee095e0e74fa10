"""Unusual entries in a student's config, and their effect under distillation."""

import copy

import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, set_random_seed
from runs import assert_equal, distilled, fcos, run_config, write_data, write_teacher
from torch import nn

from rdimkd_det.distiller.inference import trained_detector
from rdimkd_det.export.student import plain_config
from rdimkd_det.files.configs import read_config, read_detector_config

RANDOM = dict(type='RandomProjection', dim=8)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp('teacher'))


def test_init_cfg__of_the_detector_leaves_adapters_and_random_numbers_alone(teacher):
    """The init_cfg names a layer type, and mmengine initialises all such layers of all children."""
    student = fcos()
    student.init_cfg = [
        dict(type='Normal', layer='Conv2d', std=0.5, bias=1.0),
        dict(type='Constant', layer='BatchNorm2d', val=0.25),
    ]
    states = []
    for config in (copy.deepcopy(student), distilled(student, teacher, projection=RANDOM)):
        set_random_seed(7)
        model = MODELS.build(config)
        if 'distill' in dict(model.named_children()):
            adapter = model.distill.losses['neck'].adapters[0]
            drawn = adapter.weight.detach().clone()
        model.init_weights()
        states.append({**model.state_dict(), 'random': torch.get_rng_state()})
    assert_equal(*states)
    assert torch.equal(adapter.weight, drawn) and not adapter.bias.any()
    assert list(dict(model.named_children()))[-1] == 'distill'


def test_init_weights__that_fails_keeps_distillation(teacher, monkeypatch):
    model = MODELS.build(distilled(fcos(), teacher, projection=RANDOM))
    distill = model.distill
    monkeypatch.setattr(model.neck, 'init_weights', lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.init_weights()
    assert model.distill is distill


@pytest.mark.parametrize('runner_type', [None, 'FlexibleRunner'])
def test_data_preprocessor__at_the_top_of_a_config(teacher, tmp_path, runner_type):
    """YOLOv3's and Mask2Former's configs have it there, and the Runner passes it to the model."""
    student = fcos()
    preprocessor = student.pop('data_preprocessor')
    write_data(tmp_path / 'data')
    cfg = run_config(tmp_path / 'data', tmp_path / 'run', distilled(student, teacher))
    cfg.data_preprocessor = dict(preprocessor, mean=[1.0, 2.0, 3.0])
    if runner_type:
        cfg.runner_type = runner_type
    runner = RUNNERS.build(cfg) if runner_type else Runner.from_cfg(cfg)
    model = runner.model if isinstance(runner.model, nn.Module) else MODELS.build(runner.model)
    assert model.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]
    assert not model.distill.teacher.bridge.same_values


def test_data_preprocessor__at_the_top_of_a_config_is_the_trained_detectors_too(teacher, tmp_path):
    """Where no Runner hands it on: in exports, reports and pictures, and for the teacher."""
    model = fcos()
    preprocessor = model.pop('data_preprocessor')
    Config(dict(data_preprocessor=preprocessor, model=model)).dump(tmp_path / 'plain.py')
    assert read_detector_config(str(tmp_path / 'plain.py')).data_preprocessor == preprocessor
    top = Config(dict(data_preprocessor=preprocessor, model=distilled(model, teacher)))
    assert plain_config(top).model.data_preprocessor == preprocessor
    weights = tmp_path / 'student.pth'
    torch.save(MODELS.build(model).state_dict(), weights)
    top.dump(tmp_path / 'distilled.py')
    handed = read_config(tmp_path / 'distilled.py', 'student').model
    detector = trained_detector(handed, str(weights), 'student')
    assert isinstance(detector.data_preprocessor, DetDataPreprocessor)


def test_data_preprocessor__of_the_student_goes_first(teacher):
    model = distilled(fcos(), teacher, projection=RANDOM)
    model.data_preprocessor = dict(model.student.data_preprocessor, mean=[1.0, 2.0, 3.0])
    built = MODELS.build(model)
    assert built.data_preprocessor.mean.flatten().tolist() == pytest.approx(
        [123.675, 116.28, 103.53]
    )
