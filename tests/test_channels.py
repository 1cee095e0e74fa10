"""Networks whose images have another number of channels than three."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectors import random_batch, small_config, teacher_files
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import call_tool, distilled, fcos, run_config, write_data
from torch import nn

from rdimkd_det import ConfigError
from rdimkd_det.bridge import InputBridge
from rdimkd_det.channels import image_channels
from rdimkd_det.features import probe_levels
from rdimkd_det.preflight.input_formats import InputFormat, candidates


def of_channels(channels: int, **options) -> dict:
    """Return an FCOS for images of so many channels, with one mean and deviation for all."""
    model = fcos(**options)
    model.backbone.in_channels = channels
    model.data_preprocessor.update(mean=[110.0], std=[50.0], bgr_to_rgb=False)
    return model


@pytest.mark.parametrize('channels', [1, 3, 4, 5])
def test_image_channels__of_the_first_convolution(channels):
    assert image_channels(MODELS.build(of_channels(channels))) == channels
    with torch.device('meta'):
        assert image_channels(MODELS.build(of_channels(channels)).backbone) == channels


def test_image_channels__stem_that_rearranges_pixels():
    """YOLOX's first convolution takes 12 channels, four of each of the image's."""
    yolox = MODELS.build(small_config('yolox/yolox_tiny_8xb8-300e_coco.py').model)
    assert image_channels(yolox) == 3
    convolution = yolox.backbone.stem.conv.conv
    yolox.backbone.stem.conv.conv = nn.Conv2d(4, convolution.out_channels, 3)
    assert image_channels(yolox) == 1


class WithPlaces(nn.Module):
    """Adds the two coordinates of each pixel, as CoordConv does."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels + 2, 4, 3, stride=2)

    def forward(self, images):
        return self.conv(torch.cat([images, images[:, :1], images[:, :1]], 1))


class Fastidious(nn.Module):
    """Refuses images of other channels before its first layer, as transformers' networks do."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, stride=2)

    def forward(self, images):
        if images.shape[1] != self.conv.in_channels:
            raise ValueError('Make sure that the channel dimension matches.')
        return self.conv(images)


@pytest.mark.parametrize('network', [WithPlaces, Fastidious])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_image_channels__of_modules(network, channels):
    assert image_channels(network(channels)) == channels


def test_image_channels__leaves_the_network_alone():
    network = MODELS.build(of_channels(4)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    image_channels(network)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize('channels', [1, 4, 5])
def test_probe__levels(channels):
    levels = probe_levels(MODELS.build(of_channels(channels)), ['neck'])['neck']
    assert [level.stride for level in levels] == [8, 16, 32]


@pytest.mark.parametrize('channels', [1, 4, 5])
def test_bridge__equals_the_teachers_own(channels):
    student, teacher = (
        DetDataPreprocessor(mean=mean, std=std, pad_size_divisor=32, pad_value=7)
        for mean, std in (([110.0], [50.0]), ([3.0], [255.0]))
    )
    batch = random_batch(size=[(50, 75), (61, 40)])
    batch['inputs'] = [image[:1].expand(channels, -1, -1) for image in batch['inputs']]
    wanted = teacher({**batch, 'inputs': list(batch['inputs'])}, True)['inputs']
    data = student({**batch, 'inputs': list(batch['inputs'])}, True)
    given = InputBridge(student, teacher)(data['inputs'], data['data_samples'])
    assert given.shape == (2, channels, 64, 96)
    torch.testing.assert_close(given, wanted, atol=2e-4, rtol=2e-5)


def build(tmp_path, student, teacher):
    config, checkpoint = teacher_files(tmp_path, Config(dict(model=teacher)))
    return MODELS.build(distilled(student, dict(config=config, checkpoint=checkpoint)))


@pytest.mark.parametrize(
    'student, teacher, expected',
    [
        (1, 3, 'the student takes images of 1 channel, the teacher of 3; both see the same'),
        (3, 4, 'the student takes images of 3 channels, the teacher of 4; both see the same'),
    ],
)
def test_mistake__teacher_of_other_images(tmp_path, student, teacher, expected):
    with pytest.raises(ConfigError, match=expected):
        build(tmp_path, of_channels(student), of_channels(teacher))


@pytest.mark.parametrize('who', ['student', 'teacher'])
def test_mistake__preprocessor_and_network_disagree(tmp_path, who):
    models = {'student': of_channels(4), 'teacher': of_channels(4)}
    models[who].data_preprocessor.update(mean=[1.0] * 3, std=[1.0] * 3)
    expected = f"the {who}'s data_preprocessor has mean and std of 3 channels, and its network "
    with pytest.raises(ConfigError, match=expected):
        build(tmp_path, **models)
    models[who].data_preprocessor.update(mean=[1.0], std=[1.0], bgr_to_rgb=True)
    with pytest.raises(ConfigError, match=f"{who}'s data_preprocessor reverses the channels"):
        build(tmp_path, **models)


def test_candidates__without_an_order_of_channels():
    of_gray = InputFormat.of(DetDataPreprocessor(mean=[110.0], std=[50.0]), channels=1)
    formats = candidates(of_gray)
    assert 'as configured, channels swapped' not in formats and len(formats) == 4
    assert all(len(each.mean) == len(each.std) == 1 for each in formats.values())
    assert str(of_gray) == 'mean [110], std [50]'
    assert of_gray.as_config() == 'mean=[110], std=[50]'


@pytest.fixture(scope='module', params=[1, 4])
def trained(request, tmp_path_factory):
    """Train a distilled student on images of 1 or 4 channels; return its folder and channels."""
    folder = tmp_path_factory.mktemp('channels')
    data = write_data(folder / 'data')
    for path in (data / 'images').iterdir():
        image = cv2.imread(str(path))
        extra = image.mean(2, keepdims=True).astype(np.uint8)
        cv2.imwrite(str(path), extra if request.param == 1 else np.dstack([image, extra]))
    big = of_channels(request.param, base_channels=16, fpn_channels=24)
    teacher = dict(
        zip(('config', 'checkpoint'), teacher_files(folder, run_config(data, folder, big)))
    )
    model = distilled(of_channels(request.param), teacher)
    config = run_config(data, folder / 'work', model, max_epochs=1)
    config.train_cfg.val_interval = 1
    for split in ('train', 'val', 'test'):
        loading = config[f'{split}_dataloader'].dataset.pipeline[0]
        loading.update(color_type='unchanged', type='LoadImageFromFile')
    config.dump(folder / 'config.py')
    call_tool('train.py', folder / 'config.py')
    return folder, request.param


def test_tools__train_and_resume(trained):
    folder, channels = trained
    weights = torch.load(folder / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert weights['backbone.conv1.weight'].shape[1] == channels
    call_tool('train.py', folder / 'config.py', '--resume', '--cfg-options',
              'train_cfg.max_epochs=2', f'work_dir={folder / "work"}')  # fmt: skip
    assert (folder / 'work/epoch_2.pth').is_file()


def test_tools__preflight(trained):
    folder, _ = trained
    with pytest.raises(SystemExit):
        call_tool('preflight.py', folder / 'config.py', '--json', folder / 'report.json')
    report = json.loads((folder / 'report.json').read_text())
    (found,) = (it for it in report['findings'] if it['topic'] == 'Input')
    assert found['text'].startswith('student and teacher: mean [110], std [50]')
    assert 'Training step' not in [it['topic'] for it in report['findings']]


def test_tools__cache(trained):
    folder, _ = trained
    call_tool('cache_teacher.py', folder / 'config.py', '--out', folder / 'cache')
    call_tool(
        'train.py', folder / 'config.py', '--work-dir', folder / 'cached',
        '--cfg-options', f'model.teacher.cache={folder / "cache"}',
    )  # fmt: skip
    assert (folder / 'cached/epoch_1.pth').is_file()


def test_tools__export_visualize_and_test(trained):
    pytest.importorskip('onnxruntime')
    folder, channels = trained
    checkpoint = folder / 'work/epoch_1.pth'
    call_tool(
        'export_student.py', checkpoint, '--config', folder / 'config.py',
        '--out', folder / 'student.pth', '--onnx', folder / 'student.onnx',
    )  # fmt: skip
    import onnx

    (inputs,) = onnx.load(str(folder / 'student.onnx')).graph.input
    assert inputs.type.tensor_type.shape.dim[1].dim_value == channels
    call_tool('test.py', folder / 'config.py', checkpoint)
    call_tool(
        'visualize.py', folder / 'config.py', checkpoint, folder / 'data/images/0.png',
        '--out', folder / 'maps.png',
    )  # fmt: skip
    assert (folder / 'maps.png').is_file()
