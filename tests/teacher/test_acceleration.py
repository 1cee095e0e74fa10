"""An accelerated teacher gives the same maps as the plain one."""

from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters

from rdimkd_det import ConfigError
from rdimkd_det.teacher import DetectorSource, Teacher
from rdimkd_det.teacher.acceleration import Acceleration, accelerate, training_dtype
from rdimkd_det.teacher.build import build_teacher

FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'
FAMILIES = {
    'resnet': FCOS,
    'resnext': 'cascade_rcnn/cascade-rcnn_x101-32x4d_fpn_1x_coco.py',
    'gn+ws': 'gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py',
    'deformable': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'hrnet': 'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py',
    'swin': 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    'pvt': 'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py',
    'rtmdet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolov3': 'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py',
}
PLAIN = dict(fuse=False, channels_last=False, precision='fp32')


@pytest.fixture
def files(tmp_path, small_config, teacher_files):
    return trained(teacher_files(tmp_path, small_config(FCOS)))


def trained(files):
    """Give the checkpoint's BatchNorms statistics as after a training."""
    content = torch.load(files[1], weights_only=True)
    for key, value in content['state_dict'].items():
        if key.endswith('running_mean'):
            value.normal_(std=0.3)
        elif key.endswith('running_var'):
            value.uniform_(0.5, 2)
    torch.save(content, files[1])
    return files


def maps(files, images, **options):
    return Teacher(DetectorSource(*files), ['neck'], Acceleration(**options))(images)['neck']


def assert_agree(found, expected, tolerance):
    """Assert that maps agree, with a tolerance relative to the largest value in each map."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert b.abs().max() > 0
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize('family', FAMILIES)
def test_defaults__agree(tmp_path, small_config, teacher_files, family):
    options = {'base_channels': 32} if family == 'gn+ws' else {}  # 32 groups
    files = trained(teacher_files(tmp_path, small_config(FAMILIES[family], **options)))
    images = torch.randn(2, 3, 96, 160)
    assert_agree(maps(files, images), maps(files, images, **PLAIN), 2e-5)


@pytest.mark.parametrize(
    'options, tolerance',
    [
        ({'fuse': True}, 2e-5),
        ({'channels_last': True}, 2e-5),
        ({'precision': 'bf16'}, 3e-2),
        ({'precision': 'bf16', 'fuse': True, 'channels_last': True}, 3e-2),
        ({'share_weights': True}, 0),
    ],
)
def test_option__agrees(files, options, tolerance):
    images = torch.randn(2, 3, 96, 160)
    found = maps(files, images, **{**PLAIN, **options})
    assert_agree(found, maps(files, images, **PLAIN), tolerance)
    half = options.get('precision') == 'bf16'
    assert all(level.dtype == (torch.bfloat16 if half else torch.float32) for level in found)
    if 'channels_last' in options:
        assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_fuse__no_batch_norm_is_left(files):
    def norms(**options):
        teacher = Teacher(DetectorSource(*files), ['neck'], Acceleration(**options))
        teacher.build()
        modules = list(teacher._network.modules())
        assert not any(module.training for module in modules)
        assert not any(p.requires_grad for p in teacher._network.parameters())
        return sum(isinstance(module, nn.BatchNorm2d) for module in modules)

    assert norms(fuse=False) == 53 and norms() == 0


def test_precision__as_autocast_but_cast_once(files):
    images = torch.randn(1, 3, 64, 96)
    teacher = Teacher(DetectorSource(*files), ['neck'], Acceleration(precision='bf16', fuse=False))
    found = teacher(images)['neck']
    network = Teacher(DetectorSource(*files), ['neck'], Acceleration(precision='fp32', fuse=False))
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        network.build()
        expected = network._network(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    kinds = {type(m).__name__: p.dtype for m in teacher._network.modules() for p in m.parameters(0)}
    assert kinds == {'Conv2d': torch.bfloat16, 'BatchNorm2d': torch.float32}


def test_precision__of_the_cpu_is_float32_whatever_the_student_does(files):
    images = torch.randn(1, 3, 64, 96)
    expected = maps(files, images)
    with torch.autocast('cpu', torch.bfloat16):
        found = maps(files, images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize(
    'optim_wrapper, expected',
    [
        (dict(type='AmpOptimWrapper'), torch.float16),
        (dict(type='mmengine.AmpOptimWrapper', dtype='bfloat16'), torch.bfloat16),
        (dict(type=AmpOptimWrapper, dtype=torch.bfloat16), torch.bfloat16),
        (dict(type='AmpOptimWrapper', dtype='float32'), None),
        (dict(type='OptimWrapper'), None),
        (None, None),
    ],
)
def test_training_dtype__literal(optim_wrapper, expected):
    assert training_dtype(dict(optim_wrapper=optim_wrapper)) == expected


def test_precision__of_the_training_also_outside_of_its_autocast(files):
    teacher = Teacher(DetectorSource(*files), ['neck'])
    assert teacher._precision(torch.device('cuda')) is None
    teacher.prepare(Config(dict(optim_wrapper=dict(type='AmpOptimWrapper', dtype='bfloat16'))))
    assert teacher._precision(torch.device('cpu')) is None
    assert teacher._precision(torch.device('cuda')) is torch.bfloat16
    assert teacher._network.backbone.conv1.weight.dtype is torch.bfloat16


def test_precision__fp16_needs_a_gpu(files):
    with pytest.raises(ConfigError, match="precision='fp16' needs a GPU"):
        maps(files, torch.randn(1, 3, 64, 96), precision='fp16')


class NormFirst(nn.Module):
    """Declares BatchNorm after the convolution and calls it before; folding goes by declaration."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.backbone(self.bn(images))


class OneConvTwice(nn.Module):
    """Two BatchNorms share a convolution."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1)) for _ in range(2))
        self.backbone[1][0] = self.backbone[0][0]
        self.backbone = nn.Sequential(
            *(nn.Sequential(*part, nn.BatchNorm2d(3)) for part in self.backbone)
        )
        for part in self.backbone:
            part[1].running_var.uniform_(0.5, 2)

    def forward(self, images):
        return self.backbone(images)


class MemoryReader(nn.Module):
    """Reads memory as if it were contiguous, as the deformable convolution does."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images):
        feats = self.backbone[0](images)
        feats = torch.as_strided(feats, feats.shape, torch.empty(feats.shape).stride())
        return self.backbone[1](feats)


class Tapped(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images)


@pytest.mark.parametrize('kind, left_out', [(NormFirst, 'fuse'), (OneConvTwice, 'fuse'),
                                            (MemoryReader, 'channels_last')])  # fmt: skip
def test_accelerate__leaves_out_what_harms(kind, left_out):
    plain = Tapped(kind()).eval()
    state = plain.state_dict()

    def build():
        network = Tapped(kind()).eval()
        network.load_state_dict(state)
        return network

    images = torch.randn(2, 3, 20, 30)
    with mock.patch('rdimkd_det.teacher.acceleration.print_log') as log:
        network = accelerate(build, Acceleration(), ['backbone'])
    assert left_out in log.call_args.args[0]
    torch.testing.assert_close(network(images), plain(images).detach())


@pytest.mark.slow
def test_compile__agrees(tmp_path, small_config, teacher_files):
    files = trained(teacher_files(tmp_path, small_config(FCOS, depth=18)))
    images = torch.randn(2, 3, 96, 160)
    assert_agree(maps(files, images, compile=True), maps(files, images), 2e-5)


@pytest.mark.slow
def test_compile__many_sizes_are_few_compilations(tmp_path, small_config, teacher_files):
    """Uses a backend that compiles fast; the number of compilations does not depend on it."""
    files = trained(teacher_files(tmp_path, small_config(FCOS, depth=18)))
    with mock.patch('torch.compile', partial(torch.compile, backend='aot_eager')):
        teacher = Teacher(DetectorSource(*files), ['neck'], Acceleration(compile=True))
        for num, height, width in [(2, 512, 640), (2, 640, 512), (1, 512, 640)]:
            teacher(torch.randn(num, 3, height, width))
        compiled = counters['stats']['unique_graphs']
        assert compiled > 0
        for num, height, width in [(2, 768, 640), (3, 576, 704), (4, 544, 672)]:
            teacher(torch.randn(num, 3, height, width))
        assert counters['stats']['unique_graphs'] == compiled


def test_compile__hides_inner_taps(files):
    with pytest.raises(ConfigError, match=r"'neck.fpn_convs' is tapped, .* set compile=False"):
        Teacher(DetectorSource(*files), ['neck.fpn_convs'], Acceleration(compile=True))


class TakesOneSize(nn.Module):
    """Like a vision transformer with fixed position embeddings."""

    def __init__(self, size=224):
        super().__init__()
        self.size, self.patches = size, nn.Conv2d(3, 8, 16, 16)
        self.positions = nn.Parameter(torch.randn(1, 8, size // 16, size // 16))

    def forward(self, images):
        assert images.shape[2:] == (self.size, self.size), f'takes {self.size} pixels only'
        return (self.patches(images) + self.positions,)


@pytest.mark.parametrize('size', [224, 512])
def test_network_of_one_image_size__is_probed_and_runs_as_it_is(tmp_path, size):
    MODELS.register_module(module=TakesOneSize, force=True)
    network = TakesOneSize(size)
    torch.save({f'backbone.{k}': v for k, v in network.state_dict().items()}, tmp_path / 'w.pth')
    config = {'model': {'type': 'FCOS', 'backbone': {'type': 'TakesOneSize', 'size': size}}}
    teacher = Teacher(DetectorSource(config, tmp_path / 'w.pth'), ['backbone'])
    [level] = teacher.probe()['backbone']
    assert (level.stride, level.channels, level.image) == (16, 8, size)
    images = torch.randn(1, 3, size, size)
    torch.testing.assert_close(teacher(images)['backbone'][0], network(images)[0].detach())


@pytest.mark.parametrize(
    'options, message',
    [
        ({'presicion': 'fp16'}, "has no option 'presicion'; did you mean 'precision'"),
        ({'cach': 'x'}, "has no option 'cach'; did you mean 'cache'"),
        ({'zzz': 1}, "has no option 'zzz'; it has config, checkpoint, cache, image_scale, fuse, "),
        ({'precision': 'half'}, "precision must be 'auto', .* got 'half'"),
        ({'fuse': 'no'}, "fuse must be True or False, got 'no'"),
        ({'share_weights': True}, 'share_weights=True needs fuse=False and channels_last=False'),
        (
            {**PLAIN, 'share_weights': True, 'precision': 'bf16'},
            "precision='bf16' gives each process converted ones of its own; take precision='fp32'",
        ),
    ],
)
def test_build_teacher__wrong_option(options, message):
    with pytest.raises(ConfigError, match=message):
        build_teacher(dict(config='x.py', checkpoint='y.pth', **options), {}, None)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='Linux tells what is mapped')
@pytest.mark.parametrize('kind', ['pth', 'safetensors'])
def test_share_weights__are_mapped_from_the_file(files, kind):
    if kind == 'safetensors':
        weights = torch.load(files[1], weights_only=True)['state_dict']
        files = files[0], files[1].replace('.pth', '.safetensors')
        save_file(weights, files[1])
    teacher = Teacher(
        DetectorSource(*files), ['neck'], Acceleration(False, False, share_weights=True)
    )
    teacher.build()
    areas = [line.split() for line in Path('/proc/self/maps').read_text().splitlines()]
    ranges = [area[0].split('-') for area in areas if area[-1] == files[1]]
    ranges = [(int(start, 16), int(end, 16)) for start, end in ranges]
    for parameter in teacher._network.parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in ranges)


def test_share_weights__needs_the_zip_format(files):
    torch.save(
        torch.load(files[1], weights_only=True), files[1], _use_new_zipfile_serialization=False
    )
    teacher = Teacher(
        DetectorSource(*files), ['neck'], Acceleration(False, False, share_weights=True)
    )
    with pytest.raises(ConfigError, match='share_weights=True needs a file on this machine'):
        teacher.build()
    Teacher(DetectorSource(*files), ['neck']).build()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('own_stream', [False, True])
def test_cuda__half_precision_in_autocast(files, own_stream):
    images = torch.randn(2, 3, 160, 224, device='cuda')
    expected = maps(files, images, **PLAIN)
    teacher = Teacher(DetectorSource(*files), ['neck'], Acceleration(own_stream=own_stream))
    for _ in range(2):
        with torch.autocast('cuda', torch.float16):
            found = teacher(images)
        teacher.wait(found)
        assert all(level.dtype == torch.float16 for level in found['neck'])
        assert_agree(found['neck'], expected, 1e-2)
    kinds = {type(m).__name__: p.dtype for m in teacher._network.modules() for p in m.parameters(0)}
    assert kinds['Conv2d'] == torch.float16
