import pytest
import torch
from mmdet.registry import MODELS

from rdimkd_det import ConfigError

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
IDENTITY = {'type': 'RdimKDLoss', 'projection': {'type': 'IdentityProjection'}}


@pytest.fixture
def build(tmp_path, small_config, teacher_files):
    teacher = small_config(FCOS, depth=18, neck={'num_outs': 4})
    config, checkpoint = teacher_files(tmp_path, teacher)

    def build(**loss):
        return MODELS.build(
            {
                'type': 'RdimKDDistiller',
                'student': small_config(FCOS, depth=18, channels=64).model,
                'teacher': {'config': config, 'checkpoint': checkpoint},
                'losses': {'neck': {**IDENTITY, **loss}},
            }
        ).distill

    return build


@pytest.mark.parametrize(
    'name, value',
    [('student_channels', 64), ('teacher_channels', [32] * 4), ('teacher_channels', (32,) * 4)],
)
def test_sizes__may_be_given_when_right(build, name, value):
    loss = build(**{name: value}).losses['neck']
    assert loss.student_channels == [64] * 4 and loss.teacher_channels == [32] * 4


@pytest.mark.parametrize(
    'given',
    [{'student_channels': 32}, {'teacher_channels': [64, 32, 32, 32]}, {'num_levels': 5}],
)
def test_sizes__contradict_the_models(build, given):
    name, value = given.copy().popitem()
    with pytest.raises(ConfigError, match=f'at .neck.: {name}={value}'.replace('[', r'\[')):
        build(**given)


def test_forward__names_the_level_that_is_not_finite(build):
    distill = build()
    shapes = [(1, 6, 8), (1, 3, 4), (1, 2, 2), (1, 1, 1)]
    student = {'neck': [torch.randn(1, 64, *shape[1:]) for shape in shapes]}
    teacher = {'neck': [torch.randn(1, 32, *shape[1:]) for shape in shapes]}
    assert list(distill(student, teacher)) == [f'loss_rdimkd_neck_s{s}' for s in (8, 16, 32, 64)]
    teacher['neck'][1][0, 0, 0, 0] = float('inf')
    with pytest.raises(FloatingPointError, match=r'^loss_rdimkd_neck_s16 is not finite'):
        distill(student, teacher)


def test_compared__maps_of_one_stride_cropped_to_their_common_part(build):
    distill = build()
    student = [torch.randn(1, 64, *size) for size in ((6, 9), (3, 4), (2, 2), (1, 1))]
    teacher = [torch.randn(1, 32, *size) for size in ((5, 8), (3, 5), (2, 2), (1, 1))]
    ((tap, loss, *sides),) = distill.compared({'neck': student}, {'neck': teacher})
    assert tap == 'neck' and loss is distill.losses['neck']
    for maps, cropped in zip((student, teacher), sides):
        assert [tuple(it.shape[2:]) for it in cropped] == [(5, 8), (3, 4), (2, 2), (1, 1)]
        assert torch.equal(cropped[0], maps[0][:, :, :5, :8])
