"""Student and teacher pad a batch differently; their maps are still compared by position."""

from pathlib import Path

import pytest
import torch
from detectors import random_batch
from mmdet.registry import MODELS
from runs import distilled, fcos, write_teacher

from rdimkd_det.features import crop_to_common, record_outputs
from rdimkd_det.losses.padding import positions_in_images

IDENTITY = dict(type='IdentityProjection')


@pytest.fixture
def build(tmp_path):
    """Build a student that pads to 32, and a teacher of the same size that pads to 64."""

    def build(**loss):
        teacher = write_teacher(tmp_path, base_channels=8, fpn_channels=16)
        text = Path(teacher['config']).read_text()
        assert 'pad_size_divisor=32' in text
        text = text.replace('pad_size_divisor=32', 'pad_size_divisor=64')
        Path(teacher['config']).write_text(text)
        return MODELS.build(distilled(fcos(), teacher, projection=IDENTITY, **loss)).train()

    return build


@pytest.mark.parametrize('resize', [None, 'student', 'teacher'])
def test_equal_strides__are_cropped_and_never_interpolated(build, resize):
    """Images of 90x150 are padded to 96x160 and 128x192: 12x20 of 16x24 positions at stride 8."""
    model = build(resize=resize, normalize=None)
    data = model.data_preprocessor(random_batch(size=(90, 150), num_classes=3), training=True)
    with record_outputs(model, ['neck']) as outputs:
        losses = model(**data, mode='loss')
    network = model.distill.teacher._network
    padded = torch.nn.functional.pad(data['inputs'], (0, 32, 0, 32))
    with torch.no_grad():
        teacher = network(padded)
    assert outputs['neck'][0].shape[2:] == (12, 20) and teacher[0].shape[2:] == (16, 24)
    for stride, own, other in zip((8, 16, 32), outputs['neck'], teacher):
        height, width = own.shape[2:]
        rows, columns = -(-90 // stride), -(-150 // stride)  # those that see the image
        expected = (own - other[:, :, :height, :width]).square()[:, :, :rows, :columns].mean()
        torch.testing.assert_close(losses[f'loss_rdimkd_neck_s{stride}'], expected)


@pytest.mark.parametrize('normalize', [None, 'teacher', 'standardize'])
def test_padding__is_left_out(build, normalize):
    """A 96x64 and a 64x160 image in a batch of 96x160: 96 + 160 of 480 positions at stride 8."""
    model = build(normalize=normalize)
    sizes = [(96, 64), (64, 160)]
    data = model.data_preprocessor(random_batch(size=sizes, num_classes=3), training=True)
    assert data['inputs'].shape[2:] == (96, 160)
    with record_outputs(model, ['neck']) as outputs:
        losses = model(**data, mode='loss')
    with torch.no_grad():
        feats = model.distill.teacher_feats(data['inputs'], data['data_samples'])['neck']
    own, other = outputs['neck'][0], feats[0][:, :, :12, :20]
    parts = [(maps[0, :, :, :8], maps[1, :, :8]) for maps in (own, other)]
    own, other = (torch.cat([part.flatten(1) for part in of_one], 1) for of_one in parts)
    assert own.shape[1] == 96 + 160
    if normalize == 'standardize':
        own, other = (
            (it - it.mean(1, keepdim=True)) / it.std(1, keepdim=True) for it in (own, other)
        )
    scale = other.var(1).mean() if normalize == 'teacher' else 1
    expected = (own - other).square().mean() / scale
    torch.testing.assert_close(losses['loss_rdimkd_neck_s8'], expected, rtol=0.01, atol=0)


@pytest.mark.parametrize('resize', ['student', 'teacher'])
def test_padding__is_left_out_of_resized_maps(tmp_path, resize):
    """The student's only level has stride 16, the teacher's stride 32: one is resized."""
    teacher = write_teacher(tmp_path, base_channels=8, fpn_channels=16)
    cfg = distilled(fcos(), teacher, projection=IDENTITY, normalize=None, resize=resize)
    cfg.losses['backbone.layer3'] = dict(cfg.losses.pop('neck'), teacher_module='backbone.layer4')
    cfg.losses['backbone.layer3'].projection = dict(type='RandomProjection', dim=4)
    model = MODELS.build(cfg).train()
    data = model.data_preprocessor(
        random_batch(size=[(96, 64), (64, 160)], num_classes=3), training=True
    )
    (tap,) = model.distill.taps
    (pair,) = model.distill.level_pairs[tap]
    assert [level.stride for level in pair] == [16, 32]
    with record_outputs(model, [tap]) as outputs:
        model(**data, mode='loss')
    feats = model.distill.teacher_feats(data['inputs'], data['data_samples'])
    sizes = [(96, 64), (64, 160)]
    (compared,) = model.distill.compared(outputs, feats, sizes)
    stride = 32 if resize == 'student' else 16
    inside = sum(-(-height // stride) * -(-width // stride) for height, width in sizes)
    assert [len(it) for it in compared.positions] == [inside]
    height, width = (96 // stride, 160 // stride)
    assert compared.positions[0].max() < 2 * height * width


def test_positions__all_of_a_batch_without_padding():
    maps = torch.zeros(2, 3, 12, 20)
    assert positions_in_images([(96, 160), (90, 153)], maps, 8) is None
    assert positions_in_images(None, maps, 8) is None  # samples that do not say it
    assert len(positions_in_images([(96, 160), (88, 160)], maps, 8)) == 2 * 240 - 20


@pytest.mark.parametrize(
    'strides, student, teacher, common',
    [
        ((8, 8), (12, 20), (16, 24), ((12, 20), (12, 20))),
        ((8, 8), (13, 9), (12, 10), ((12, 9), (12, 9))),
        # 100x60 pixels at strides 8 and 16: nothing but rounding differs, nothing is cut.
        ((8, 16), (13, 8), (7, 4), ((13, 8), (7, 4))),
        # The teacher pads 96 pixels to 128; 16 rows of 6 meet 12 of 8.
        ((6, 8), (16, 16), (16, 16), ((16, 16), (12, 12))),
        ((8, 6), (16, 16), (16, 16), ((12, 12), (16, 16))),
    ],
)
def test_crop__to_what_both_cover(strides, student, teacher, common):
    maps = [torch.randn(1, 2, *size) for size in (student, teacher)]
    cropped = crop_to_common(*maps, *strides)
    for own, whole, size in zip(cropped, maps, common):
        assert torch.equal(own, whole[:, :, : size[0], : size[1]]) and own.shape[2:] == size
