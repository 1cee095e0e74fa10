import pytest
import torch
from detectors import CONFIGS
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.features import (
    Level,
    crop_to_common,
    find_module,
    match_levels,
    probe_levels,
    record_outputs,
)

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
MASK_RCNN = 'mask_rcnn/mask-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py'


@pytest.fixture
def detector(small_config):
    return MODELS.build(small_config(FCOS, depth=18).model)


def levels(*strides, channels=32):
    return [Level(index, stride, channels) for index, stride in enumerate(strides)]


def strides_of(pairs):
    return [(student.stride, teacher.stride) for student, teacher in pairs]


def hooks_of(network):
    return [hook for module in network.modules() for hook in module._forward_hooks]


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        self.backbone(images)
        raise ArithmeticError('out of luck')


def test_record__outputs_of_a_detector(detector):
    with record_outputs(detector, ['backbone', 'neck']) as outputs:
        feats = detector.extract_feat(torch.randn(2, 3, 70, 100))
    assert [maps.shape[1:] for maps in outputs['neck']][:2] == [(32, 9, 13), (32, 5, 7)]
    assert all(a is b for a, b in zip(outputs['neck'], feats))
    assert [maps.shape[1] for maps in outputs['backbone']] == [8, 16, 32, 64]
    assert not hooks_of(detector)


def test_record__nothing_left_after_an_exception():
    network = Broken()
    with pytest.raises(ArithmeticError), record_outputs(network, ['backbone']) as outputs:
        network(torch.zeros(1, 3, 4, 4))
    assert outputs['backbone'][0].shape == (1, 4, 4, 4)
    assert not hooks_of(network)
    assert probe_or_error(network) is ArithmeticError
    assert not hooks_of(network) and network.training


def probe_or_error(network):
    try:
        probe_levels(network, ['backbone'])
    except Exception as error:
        return type(error)


def test_record__nothing_left_when_a_later_tap_is_missing(detector):
    taps = ['neck', 'necks']
    with pytest.raises(ConfigError, match="tap 'necks'"), record_outputs(detector, taps):
        pass
    assert not hooks_of(detector)


def test_find__missing_lists_the_available(detector):
    with pytest.raises(ConfigError, match=r"'fpn': FCOS .* 'backbone', 'neck', 'bbox_head'"):
        find_module(detector, 'fpn')
    with pytest.raises(ConfigError, match="tap '': FCOS has no such module"):
        find_module(detector, '')


def test_find__detectors_inside_of_a_tracker_are_named(detector):
    tracker = nn.Module()
    tracker.detector, tracker.track_head = detector, nn.Identity()
    with pytest.raises(ConfigError, match="'track_head'; distil a detector alone, such as its det"):
        find_module(tracker, 'neck')


def test_find__nested(detector):
    assert find_module(detector, 'neck.fpn_convs.0') is detector.neck.fpn_convs[0]


def test_find__neck_that_is_none(detector):
    detector.neck = None
    with pytest.raises(ConfigError, match="tap 'neck'"):
        find_module(detector, 'neck')


def test_record_outputs__kinds_of_outputs():
    maps, tokens = torch.zeros(1, 2, 3, 4), torch.zeros(1, 12, 2)
    network = nn.Sequential(nn.Identity())
    for output in (maps, [maps, tokens], (maps, None), {'p3': maps, 'tokens': tokens}):
        with record_outputs(network, ['0']) as outputs:
            network(output)
        assert [kept is maps for kept in outputs['0']] == [True]


@pytest.mark.parametrize(
    'name, tap, strides, channels',
    [
        (FCOS, 'neck', [8, 16, 32, 64, 128], [32] * 5),
        (FCOS, 'backbone', [4, 8, 16, 32], [8, 16, 32, 64]),
        (MASK_RCNN, 'neck', [4, 8, 16, 32, 64], [32] * 5),
    ],
)
def test_probe__strides_and_channels(small_config, name, tap, strides, channels):
    network = MODELS.build(small_config(name, depth=18).model)
    found = probe_levels(network, [tap])[tap]
    assert [level.index for level in found] == list(range(len(strides)))
    assert [level.stride for level in found] == strides
    assert [level.channels for level in found] == channels


def test_probe__leaves_no_trace(detector):
    detector.train()
    detector.bbox_head.eval()
    modes = [module.training for module in detector.modules()]
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    probe_levels(detector, ['neck'])
    assert [module.training for module in detector.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_probe__network_that_takes_no_small_image():
    """SSD300's extra layers have no padding: with 256 pixels, nothing is left for the last one."""
    network = MODELS.build(Config.fromfile(CONFIGS / 'ssd/ssd300_coco.py').model)
    found = probe_levels(network, ['neck'])['neck']
    assert [level.stride for level in found][:4] == [8, 16, 32, 64]
    assert [level.channels for level in found] == [512, 1024, 512, 256, 256, 256]
    assert {level.image for level in found} == {384}


def test_probe__network_that_takes_no_image():
    class Picky(nn.Conv2d):
        def extract_feat(self, images):
            raise RuntimeError('no blank images, please')

    with pytest.raises(ConfigError, match=r'Picky: no features .* no blank images, please'):
        probe_levels(Picky(3, 8, 1), ['neck'][:0])


def test_probe__tap_without_maps(detector):
    with pytest.raises(ConfigError, match="tap 'bbox_head' gives no feature maps"):
        probe_levels(detector, ['bbox_head'])


def test_match__by_stride_not_by_index():
    pairs = match_levels(levels(8, 16, 32, 64, 128), levels(4, 8, 16, 32), 'neck')
    assert [(s.index, t.index) for s, t in pairs] == [(0, 1), (1, 2), (2, 3)]
    assert strides_of(pairs) == [(8, 8), (16, 16), (32, 32)]


def test_match__one_common_level():
    assert strides_of(match_levels(levels(4, 8), levels(8, 16, 32), 'neck')) == [(8, 8)]


def test_match__of_one_stride_the_last():
    assert match_levels(levels(8, 8, 16), levels(16, 8), 'neck')[0][0].index == 1


@pytest.mark.parametrize('nearest', [False, True])
def test_match__no_common_stride_lists_both(nearest):
    with pytest.raises(ConfigError, match=r'at neck: .* strides \[4, 8\], the teacher \[32, 64\]'):
        match_levels(levels(8, 4), levels(32, 64), 'at neck', nearest)


def test_match__nearest_only_without_a_common_one():
    student = levels(6, 24, 100)
    assert strides_of(match_levels(student, levels(8, 16), 'x', True)) == [(6, 8), (24, 16)]
    assert strides_of(match_levels(levels(8, 12), levels(8, 16), 'x', True)) == [(8, 8)]
    with pytest.raises(ConfigError, match='no level has a common stride'):
        match_levels(student, levels(8, 16), 'x')


def test_crop__both_start_at_the_first_pixel():
    student = torch.arange(2 * 30.0).reshape(1, 2, 5, 6)
    teacher = torch.arange(1 * 28.0).reshape(1, 1, 4, 7)
    cropped = crop_to_common(student, teacher)
    assert [maps.shape for maps in cropped] == [(1, 2, 4, 6), (1, 1, 4, 6)]
    assert torch.equal(cropped[0], student[:, :, :4]) and cropped[1][0, 0, 1, 0] == 7
