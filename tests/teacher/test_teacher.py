import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.files.configs import UnreadableConfigError, read_detector_config
from rdimkd_det.files.strict_loading import load_strictly
from rdimkd_det.teacher import DetectorSource, Teacher

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'
SWIN = 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'


@pytest.fixture
def files(tmp_path, small_config, teacher_files):
    return teacher_files(tmp_path, small_config(FCOS, depth=18))


def edit(checkpoint, change):
    """Change the weights in a checkpoint file."""
    content = torch.load(checkpoint, weights_only=True)
    change(content['state_dict'])
    torch.save(content, checkpoint)


def full_detector(files):
    model = MODELS.build(read_detector_config(files[0]))
    model.load_state_dict(torch.load(files[1], weights_only=True)['state_dict'])
    return model.eval()


def test_call__maps_of_the_whole_detector(files):
    images = torch.randn(2, 3, 70, 100)
    feats = Teacher(DetectorSource(*files), taps=['neck', 'backbone'])(images)
    detector = full_detector(files)
    with torch.no_grad():
        expected = {'backbone': detector.backbone(images), 'neck': detector.extract_feat(images)}
    for tap, maps in expected.items():
        assert len(feats[tap]) == len(maps)
        for found, own in zip(feats[tap], maps):
            torch.testing.assert_close(found, own, rtol=0, atol=1e-5 * float(own.abs().max()))
    assert not any(maps.requires_grad for maps in feats['neck'])


def test_call__gradient_mode_is_the_callers(files):
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    assert not Teacher(DetectorSource(*files), taps=['neck'])(images)['neck'][0].requires_grad
    assert torch.is_grad_enabled()


def test_build__on_first_use_frozen_and_without_head(files):
    teacher = Teacher(DetectorSource(*files), taps=['neck'])
    assert not teacher.built
    teacher(torch.randn(1, 3, 64, 64))
    network = teacher._network
    assert teacher.built and not hasattr(network, 'bbox_head')
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    teacher.release()
    assert not teacher.built


def test_build__backbone_tap_builds_no_neck(files):
    teacher = Teacher(DetectorSource(*files), taps=['backbone'])
    teacher.build()
    assert [name for name, _ in teacher._network.named_children()] == ['backbone']


def test_teacher__is_a_guest(files):
    teacher = Teacher(DetectorSource(*files), taps=['neck'])
    teacher.build()
    assert not isinstance(teacher, nn.Module)
    assert copy.deepcopy(teacher) is teacher
    owner = nn.Linear(2, 2)
    owner.teacher = teacher
    assert set(owner.state_dict()) == {'weight', 'bias'}
    assert copy.deepcopy(owner).teacher is teacher


def test_teacher__drop_path_is_off(tmp_path, small_config, teacher_files):
    config = small_config(SWIN, backbone={'drop_path_rate': 0.9, 'drop_rate': 0.5})
    files = teacher_files(tmp_path, config)
    student = small_config(FCOS, depth=18).model
    loss = {'type': 'RdimKDLoss', 'projection': {'type': 'IdentityProjection'}}
    student = MODELS.build(
        {
            'type': 'RdimKDDistiller',
            'student': student,
            'teacher': {'config': files[0], 'checkpoint': files[1]},
            'losses': {'neck': loss},
        }
    )
    teacher, images = student.distill.teacher, torch.randn(1, 3, 70, 100)
    first = teacher(images)['neck']
    student.train()
    second = teacher(images)['neck']
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    # The same network in train mode does differ: the test sees what it looks for.
    with torch.no_grad():
        third = teacher._network.train()(images)
    assert not torch.equal(first[0], third[0])


def test_teacher__takes_no_random_numbers(files):
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    teacher = Teacher(DetectorSource(*files), taps=['neck'])
    teacher.build_preprocessor()
    teacher.probe()
    teacher(torch.zeros(1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize('name', [FCOS, SWIN])
def test_probe__needs_no_weights(small_config, name):
    teacher = Teacher(
        DetectorSource({'model': small_config(name).model}, 'none.pth'), taps=['neck']
    )
    levels = teacher.probe()['neck']
    assert [level.stride for level in levels] == [8, 16, 32, 64, 128]
    assert {level.channels for level in levels} == {32} and not teacher.built


class BackboneWithTables(nn.Module):
    """Has tensors that are computed at construction and not stored in a checkpoint."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.scale = torch.full((1,), 3.0)
        self.shifts = [torch.full((1,), 5.0)]

    def forward(self, images):
        return (self.scale * self.conv(images) + self.shifts[0],)


def test_load__tensors_that_are_in_no_checkpoint(tmp_path):
    MODELS.register_module(module=BackboneWithTables, force=True)
    config = {'model': {'type': 'FCOS', 'backbone': {'type': 'BackboneWithTables'}}}
    plain = BackboneWithTables()
    weights = {f'backbone.{key}': value for key, value in plain.state_dict().items()}
    torch.save(weights, tmp_path / 'w.pth')
    images = torch.randn(1, 3, 6, 5)
    found = Teacher(DetectorSource(config, str(tmp_path / 'w.pth')), ['backbone'])(images)[
        'backbone'
    ][0]
    torch.testing.assert_close(found, plain(images)[0].detach())


def test_load__other_architecture(tmp_path, files, small_config, teacher_files):
    (tmp_path / 'r50').mkdir()
    _, other = teacher_files(tmp_path / 'r50', small_config(FCOS, depth=50))
    with pytest.raises(ConfigError) as caught:
        Teacher(DetectorSource(files[0], other), taps=['neck']).build()
    own = full_detector(files).state_dict()
    theirs = torch.load(other, weights_only=True)['state_dict']
    own, theirs = (
        {key: value.shape for key, value in weights.items() if key[:4] in ('back', 'neck')}
        for weights in (own, theirs)
    )
    common = own.keys() & theirs.keys()
    matching = sum(own[key] == theirs[key] for key in common)
    message = str(caught.value)
    assert f'{matching} of {len(own)} keys match' in message
    assert f'{len(own.keys() - theirs.keys())} missing' in message
    assert f'{len(theirs.keys() - own.keys())} unexpected (' in message
    assert f'{len(common) - matching} of another shape (' in message
    assert other in message and files[0] in message and '\n' not in message


def test_load__one_key_missing(files):
    edit(files[1], lambda weights: weights.pop('neck.fpn_convs.1.conv.bias'))
    teacher = Teacher(DetectorSource(*files), taps=['neck'])
    with pytest.raises(ConfigError, match=r'1 missing \(neck.fpn_convs.1.conv.bias\); 0 unexp'):
        teacher.build()
    assert not teacher.built
    Teacher(DetectorSource(*files), taps=['backbone']).build()  # which does not run the neck


def test_load__one_key_unexpected(files):
    edit(files[1], lambda weights: weights.update({'neck.extra': torch.ones(1)}))
    with pytest.raises(ConfigError, match=r'0 missing; 1 unexpected \(neck.extra\); 0 of anoth'):
        Teacher(DetectorSource(*files), taps=['neck']).build()


def test_load__one_shape_differs(files):
    edit(
        files[1], lambda weights: weights.update({'backbone.conv1.weight': torch.ones(4, 3, 7, 7)})
    )
    shapes = r'1 of another shape \(backbone.conv1.weight \(4, 3, 7, 7\) for \(8, 3, 7, 7\)\)'
    with pytest.raises(ConfigError, match=shapes):
        Teacher(DetectorSource(*files), taps=['neck']).build()


def test_load__head_and_old_counters_do_not_count(files):
    def change(weights):
        for key in list(weights):
            if key.startswith('bbox_head') or key.endswith('num_batches_tracked'):
                del weights[key]

    edit(files[1], change)
    Teacher(DetectorSource(*files), taps=['neck']).build()


def test_load_strictly__few_names_of_many():
    network = nn.ModuleDict({'backbone': nn.ModuleList(nn.Linear(1, 1) for _ in range(4))})
    with pytest.raises(ConfigError, match=r'0 of 8 keys match; 8 missing \(([\w.]+, ){3}\.\.\.\)'):
        load_strictly(network, {}, 'x.pth', 'x.py', 'teacher')


def test_preprocessor__is_the_configs_own(small_config):
    config = small_config(FCOS, depth=18)
    built = Teacher(
        DetectorSource({'model': config.model}, 'none.pth'), taps=['neck']
    ).build_preprocessor()
    assert built.mean.flatten().tolist() == pytest.approx(config.model.data_preprocessor.mean)
    del config.model.data_preprocessor
    built = Teacher(
        DetectorSource({'model': config.model}, 'none.pth'), taps=['neck']
    ).build_preprocessor()
    assert type(built).__name__ == 'BaseDataPreprocessor'  # which InputBridge refuses


@pytest.mark.parametrize(
    'name, wanted, divisor',
    [
        ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 1, 32),
        ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 48, 96),
        ('conditional_detr/conditional-detr_r50_8xb2-50e_coco.py', 1, 1),
        (FCOS, 32, 32),
    ],
)
def test_preprocessor__pads_to_what_the_network_takes(small_config, name, wanted, divisor):
    model = small_config(name, data_preprocessor=dict(pad_size_divisor=wanted)).model
    built = Teacher(
        DetectorSource({'model': model}, 'none.pth'), taps=['neck']
    ).build_preprocessor()
    assert built.pad_size_divisor == divisor


def test_preprocessor__of_a_class_with_another_divisor(small_config):
    class PadsTo64(DetDataPreprocessor):
        def __init__(self, pad_size_divisor=64, **options):
            super().__init__(pad_size_divisor=pad_size_divisor, **options)

    model = small_config(FCOS, depth=18).model
    model.data_preprocessor.update(type=PadsTo64)
    del model.data_preprocessor['pad_size_divisor']
    teacher = Teacher(DetectorSource({'model': model}, 'none.pth'), taps=['neck'])
    assert teacher.build_preprocessor().pad_size_divisor == 64


def test_checkpoint__missing_only_when_training_starts(files):
    teacher = Teacher(DetectorSource(files[0], 'none.pth'), taps=['neck'])
    teacher.probe()
    with pytest.raises(ConfigError, match=r'none.pth does not exist. Relative paths count from /'):
        teacher.build()


def test_checkpoint__not_a_name(files):
    with pytest.raises(ConfigError, match=r'needs a checkpoint.*got None'):
        DetectorSource(files[0], None)


def test_config__not_there():
    with pytest.raises(UnreadableConfigError, match=r'config none.py cannot be read'):
        DetectorSource('none.py', 'w.pth')
    with pytest.raises(UnreadableConfigError, match=r'config mmdet::fcos/none.py cannot be read'):
        DetectorSource('mmdet::fcos/none.py', 'w.pth')


def test_config__a_path_is_named(files, tmp_path):
    assert DetectorSource(Path(files[0]), Path(files[1])).name == files[0]
    assert DetectorSource(Config.fromfile(files[0]), 'w.pth').name == '(given as a dict)'
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ConfigError, match=r'config .*/empty.py holds no detector'):
        DetectorSource(tmp_path / 'empty.py', 'w.pth')


@pytest.mark.parametrize('config', [{}, {'model': {'type': 'FCOS'}}, {'model': None}])
def test_config__holds_no_detector(config):
    with pytest.raises(ConfigError, match=r'holds no detector: model.backbone is missing'):
        read_detector_config(config)


def test_config__neither_name_nor_config():
    with pytest.raises(ConfigError, match='must be a path or a config with a model, got 3'):
        read_detector_config(3)


def test_config__shipped_with_mmdet():
    model = read_detector_config(f'mmdet::{RETINANET}')
    assert model.type == 'RetinaNet' and model.backbone.depth == 18


def test_config__of_a_distilled_detector_is_its_students(small_config):
    student = small_config(FCOS, depth=18)
    distilled = {'model': {'type': 'RdimKDDistiller', 'student': student.model}}
    assert read_detector_config(distilled) == read_detector_config(student)


def test_config__is_a_copy(small_config):
    config = small_config(FCOS, depth=18)
    read_detector_config(config).backbone.depth = 50
    assert config.model.backbone.depth == 18
