import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.logging import MessageHub
from mmengine.model import BaseDataPreprocessor

from rdimkd_det import ConfigError
from rdimkd_det.bridge import InputBridge

CAFFE = {'mean': [102.9801, 115.9465, 122.7717], 'std': [1.0, 1.0, 1.0], 'bgr_to_rgb': False}
RGB = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}
RTMDET = {'mean': [103.53, 116.28, 123.675], 'std': [57.375, 57.12, 58.395], 'bgr_to_rgb': False}
YOLOX = {'pad_value': 114}
GRAY = {'mean': [110.0], 'std': [50.0]}
KINDS = {'caffe': CAFFE, 'rgb': RGB, 'rtmdet': RTMDET, 'yolox': YOLOX, 'gray': GRAY}
SIZES = [(50, 75), (61, 40)]


def preprocessor(kind, divisor=32, **options):
    return DetDataPreprocessor(**{**KINDS[kind], 'pad_size_divisor': divisor, **options})


def through(preprocessor, batch):
    data = preprocessor(copy.deepcopy(batch), True)
    return data['inputs'], data['data_samples']


def assert_close(given, wanted):
    torch.testing.assert_close(given, wanted, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize('student, teacher', product(KINDS, KINDS))
def test_bridge__equals_the_teachers_own(random_batch, student, teacher):
    student, teacher = preprocessor(student), preprocessor(teacher)
    batch = random_batch(size=SIZES)
    wanted, _ = through(teacher, batch)
    given = InputBridge(student, teacher)(*through(student, batch))
    assert given.shape == wanted.shape == (2, 3, 64, 96)
    assert_close(given, wanted)
    assert torch.equal(given[0, :, 50:], wanted[0, :, 50:])  # the padding, to the bit
    assert torch.equal(given[1, :, :, 40:], wanted[1, :, :, 40:])


@pytest.mark.parametrize('divisors', product((1, 32, 64), (1, 32, 64)))
@pytest.mark.parametrize('pads', [(0, 0), (114, 0), (0, -7.5)])
@pytest.mark.parametrize('kinds', [('rgb', 'caffe'), ('rgb', 'rgb')])
def test_bridge__divisors_and_pad_values(random_batch, kinds, pads, divisors):
    student, teacher = (
        preprocessor(kind, divisor, pad_value=pad)
        for kind, divisor, pad in zip(kinds, divisors, pads)
    )
    batch = random_batch(size=SIZES)
    wanted, _ = through(teacher, batch)
    inputs, data_samples = through(student, batch)
    before = inputs.clone()
    given = InputBridge(student, teacher)(inputs, data_samples)
    assert_close(given, wanted)
    assert torch.equal(inputs, before)


@pytest.mark.parametrize('kinds', [('rgb', 'rgb'), ('caffe', 'caffe'), ('yolox', 'yolox')])
def test_bridge__same_preprocessor_passes_the_batch_through(random_batch, kinds):
    bridge = InputBridge(*map(preprocessor, kinds))
    inputs, data_samples = through(preprocessor(kinds[0]), random_batch(size=SIZES))
    assert bridge(inputs, data_samples) is inputs
    assert repr(bridge) == 'InputBridge(nothing to do)'


@pytest.mark.parametrize('other', ['rgb', 'rtmdet', 'yolox'])
def test_bridge__student_batch_is_not_modified(random_batch, other):
    student, teacher = preprocessor('rgb'), preprocessor(other, pad_value=5)
    inputs, data_samples = through(student, random_batch(size=SIZES))
    before = inputs.clone()
    given = InputBridge(student, teacher)(inputs, data_samples)
    given += 1
    assert torch.equal(inputs, before)


def test_bridge__literal():
    student = DetDataPreprocessor([1.0, 2.0, 3.0], [2.0, 4.0, 8.0], bgr_to_rgb=True)
    teacher = DetDataPreprocessor([10.0, 20.0, 30.0], [1.0, 1.0, 2.0])
    pixel = torch.tensor([50.0, 60.0, 70.0])  # B, G, R as loaded
    student_pixel = torch.tensor([(70 - 1) / 2, (60 - 2) / 4, (50 - 3) / 8]).reshape(1, 3, 1, 1)
    given = InputBridge(student, teacher)(student_pixel).flatten()
    assert given.tolist() == [pixel[0] - 10, pixel[1] - 20, (pixel[2] - 30) / 2]


def test_bridge__without_data_samples_the_images_fill_the_batch(random_batch):
    student, teacher = preprocessor('rgb'), preprocessor('caffe')
    batch = random_batch(size=(64, 96))
    assert_close(
        InputBridge(student, teacher)(through(student, batch)[0]), through(teacher, batch)[0]
    )


@pytest.mark.parametrize('divisor, size', [(1, (96, 160)), (64, (128, 192))])
def test_bridge__fixed_size_batches(random_batch, divisor, size):
    augment = {'type': 'BatchFixedSizePad', 'size': (96, 160)}
    student = preprocessor('rgb', batch_augments=[augment])
    teacher = preprocessor('caffe', divisor, pad_value=3)
    batch = random_batch(size=SIZES)
    given = InputBridge(student, teacher)(*through(student, batch))
    wanted, _ = through(teacher, batch)
    margins = (0, size[1] - wanted.shape[3], 0, size[0] - wanted.shape[2])
    assert_close(given, F.pad(wanted, margins, value=3))


def test_bridge__resized_batches(random_batch):
    student = preprocessor(
        'rgb', batch_augments=[{'type': 'BatchSyncRandomResize', 'random_size_range': (96, 96)}]
    )
    teacher = preprocessor('caffe', pad_value=3)
    MessageHub.get_current_instance().update_info('iter', 0)
    batch = random_batch(size=SIZES)
    resize = student.batch_augments[0]
    resize._input_size = (96, 144)  # 1.5 times what the padded images have
    inputs, data_samples = through(student, batch)
    assert inputs.shape[2:] == (96, 144) and data_samples[0].img_shape == (75, 112)
    given = InputBridge(student, teacher)(inputs, data_samples)
    wanted, _ = through(teacher, batch)
    wanted = F.interpolate(wanted, (96, 144), mode='bilinear', align_corners=False)
    assert given.shape[2:] == (96, 160)  # 112 wide images leave 144, which the teacher pads
    for image, expected, (height, width) in zip(given, wanted, [(75, 112), (91, 60)]):
        # The last rows are interpolated with the padding, whose value differs.
        inside = (slice(None), slice(height - 2), slice(width - 2))
        assert_close(image[inside], expected[inside])
        assert (image[:, height:] == 3).all() and (image[:, :, width:] == 3).all()


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_bridge__unknown_preprocessor(side):
    pair = [preprocessor('rgb'), preprocessor('rgb')]
    pair[side == 'teacher'] = BaseDataPreprocessor()
    with pytest.raises(ConfigError, match=f"the {side}'s data_preprocessor is a BaseDataPre"):
        InputBridge(*pair)


def test_bridge__repr_tells_the_difference():
    text = repr(InputBridge(preprocessor('rgb'), preprocessor('caffe', 64)))
    assert 'flip_channels=True' in text and 'scale=[57.375, 57.12, 58.395]' in text
    assert 'pad_size_divisor=64' in text
