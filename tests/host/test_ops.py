"""The stand-ins for mmcv's compiled operators: against the compiled ones, and references."""

import importlib.util
import os
import subprocess
import sys

import mmcv.ops
import numpy as np
import operator_cases
import pytest
import torch
import torch.nn.functional as F
from detectors import random_batch, small_config
from mmcv import ops
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmdet.registry import MODELS
from operator_cases import CASES, boxes, maps, random, scores, with_gradients
from safetensors.torch import load_file

from rdimkd_det.host.ops import Operators, backend, provide_operators

COMPILED = not provide_operators()


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Use this package's operators also where mmcv has compiled ones."""
    operators = Operators('mmcv._ext')
    for name, module in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
            monkeypatch.setattr(module, 'ext_module', operators)


@pytest.fixture(params=['torchvision', 'torch'])
def source(request, monkeypatch):
    """Let operators use torchvision, where it loads, or nothing but torch."""
    if request.param == 'torch':
        monkeypatch.setattr(backend, '_has_kernel', lambda name, device: False)
    elif not backend.torchvision_loads():
        pytest.skip('torchvision does not load')
    else:
        monkeypatch.setattr(backend, 'SLOWER_ON_CPU', ())
    return request.param


@pytest.fixture(scope='module')
def compiled_values():
    return load_file(operator_cases.VALUES)


@pytest.mark.smoke
@pytest.mark.parametrize('name', CASES)
def test_operator__equals_the_compiled_one(source, compiled_values, name):
    found = CASES[name]()
    assert f'{name}.{len(found)}' not in compiled_values
    for index, it in enumerate(found):
        torch.testing.assert_close(it, compiled_values[f'{name}.{index}'], rtol=1e-4, atol=2e-5)


@pytest.mark.smoke
@pytest.mark.skipif(not COMPILED, reason='mmcv has no compiled operators')
@pytest.mark.parametrize('name', CASES)
def test_values__are_the_compiled_operators(monkeypatch, compiled_values, name):
    """The file of values was made by the operators of this environment."""
    monkeypatch.undo()
    for index, it in enumerate(CASES[name]()):
        torch.testing.assert_close(it, compiled_values[f'{name}.{index}'], rtol=1e-5, atol=1e-6)


# mmcv computes the following on GPUs only: references in plain loops, or formulas of mmdet.


def bilinear(image, y, x):
    """Sample an image (H, W) at a point as mmcv does."""
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    above = image[top, left] * (1 - dx) + image[top, right] * dx
    below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
    return float(above * (1 - dy) + below * dy)


def test_border_align__loops(source):
    given, pool = boxes(6, size=8.0).view(2, 3, 4) - 2, 3
    output = ops.BorderAlign(pool)(maps(), given)
    expected = torch.empty(2, 2, 3, 4)
    for n, c, b in np.ndindex(2, 2, 3):
        x1, y1, x2, y2 = given[n, b].tolist()
        width, height = (x2 - x1) / pool, (y2 - y1) / pool
        starts = [
            (x1, y1, width, 0),
            (x1, y1, 0, height),
            (x2, y2, -width, 0),
            (x2, y2, 0, -height),
        ]
        for border, (x, y, dx, dy) in enumerate(starts):
            image = maps()[n, border * 2 + c]
            expected[n, c, b, border] = max(
                bilinear(image, y + i * dy, x + i * dx) for i in range(pool + 1)
            )
    torch.testing.assert_close(output, expected)


def test_roi_pool__loops(source):
    rois = operator_cases.regions(6)
    output = ops.roi_pool(maps(), rois, (2, 3), 0.25)
    expected = torch.zeros(6, 8, 2, 3)
    for k, c, row, column in np.ndindex(6, 8, 2, 3):
        n, x1, y1, x2, y2 = rois[k].tolist()
        x1, y1, x2, y2 = x1 / 4, y1 / 4, (x2 + 1) / 4, (y2 + 1) / 4
        height, width = (y2 - y1) / 2, (x2 - x1) / 3
        rows = np.clip([np.floor(y1 + row * height), np.ceil(y1 + (row + 1) * height)], 0, 5)
        columns = np.clip([np.floor(x1 + column * width), np.ceil(x1 + (column + 1) * width)], 0, 7)
        inside = maps()[int(n), c, slice(*map(int, rows)), slice(*map(int, columns))]
        expected[k, c, row, column] = inside.max() if inside.numel() else 0
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize('groups, size, scale', [(1, 3, 2), (2, 5, 2), (4, 1, 3)])
def test_carafe__loops(source, groups, size, scale):
    masks = random(2, groups * size**2, 5 * scale, 7 * scale, seed=1)
    output = ops.carafe(maps(), masks, size, groups, scale)
    padded = F.pad(maps(), [size // 2] * 4)
    expected = torch.zeros_like(output)
    for n, c, y, x in np.ndindex(*output.shape):
        patch = padded[n, c, y // scale : y // scale + size, x // scale : x // scale + size]
        mask = masks[n].view(groups, size**2, 5 * scale, 7 * scale)[c // (8 // groups), :, y, x]
        expected[n, c, y, x] = (patch.flatten() * mask).sum()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(ops.carafe_naive(maps(), masks, size, groups, scale), expected)


def test_masked_conv__equals_a_convolution_at_the_mask(source):
    layer = ops.MaskedConv2d(8, 4, 3, padding=1).eval()
    image, mask = maps()[:1], (random(1, 5, 7, seed=2) > 0.2).float()
    with torch.no_grad():
        plain = F.conv2d(image, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(image, mask), plain * mask)
        assert not layer(image, torch.zeros_like(mask)).any()


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6)])
def test_sigmoid_focal_loss__equals_mmdets_formula(source, gamma, alpha):
    logits, labels = random(9, 5, low=-9, high=9), torch.arange(9) % 6  # 5 is background
    one_hot = F.one_hot(labels, 6)[:, :5]
    found = with_gradients(
        lambda it: ops.sigmoid_focal_loss(it, labels, gamma, alpha, None, 'none'), logits
    )
    expected = with_gradients(
        lambda it: py_sigmoid_focal_loss(it, one_hot, None, gamma, alpha, 'none'), logits
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_sigmoid_focal_loss__weights_and_sum(source):
    logits, labels, weight = random(4, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([1.0, 2, 3])
    plain = ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, None, 'none')
    weighted = ops.sigmoid_focal_loss(logits, labels, 2.0, 0.25, weight, 'sum')
    torch.testing.assert_close(weighted, (plain * weight[labels][:, None]).sum())


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.6)])
def test_softmax_focal_loss__equals_its_formula(source, gamma, alpha):
    logits, labels, weight = random(9, 5, low=-4, high=4), torch.arange(9) % 5, random(5, low=0)

    def formula(it):
        p = it.softmax(1).gather(1, labels[:, None])[:, 0]
        return -alpha * (1 - p) ** gamma * p.log() * weight[labels]

    found = with_gradients(
        lambda it: ops.softmax_focal_loss(it, labels, gamma, alpha, weight, 'sum')[None], logits
    )
    torch.testing.assert_close(found, with_gradients(lambda it: formula(it).sum()[None], logits))


def attention_inputs(dtype):
    shapes = torch.tensor([[5, 7], [2, 3]])
    value, weights = random(2, 41, 2, 4), random(2, 6, 2, 2, 3, seed=1, low=0)
    locations = random(2, 6, 2, 2, 3, 2, seed=2, low=-0.2, high=1.2)
    starts = torch.tensor([0, 35])
    inputs = [it.to(dtype).requires_grad_() for it in (value, locations, weights)]
    return inputs, (shapes, starts)


def attention(value, locations, weights, shapes, starts):
    function = mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, 64)


def test_deformable_attention__loops(source):
    (value, locations, weights), (shapes, starts) = attention_inputs(torch.float32)
    output = attention(value, locations, weights, shapes, starts).detach()
    expected = torch.zeros_like(output)
    for n, q, head, level, point in np.ndindex(2, 6, 2, 2, 3):
        height, width = shapes[level].tolist()
        start = starts[level]
        keys = value[n, start : start + height * width, head].detach()
        x, y = locations[n, q, head, level, point].tolist()
        for channel in range(4):
            image = F.pad(keys[:, channel].view(height, width), [1] * 4)  # zeros outside
            sampled = bilinear(image, y * height + 0.5, x * width + 0.5)
            expected[n, q, head * 4 + channel] += sampled * weights[n, q, head, level, point].item()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


double = torch.float64
# Away from positions where samples cross from one pair of neighbours to the next.
GRADIENTS = {
    'roi_align': lambda: (
        lambda it: ops.roi_align(
            it, operator_cases.regions(4).double(), (2, 2), 0.25, 2, 'avg', True
        ),
        [maps(channels=2).double()],
    ),
    'roi_align_max': lambda: (
        lambda it: ops.roi_align(
            it, operator_cases.regions(4).double(), (2, 2), 0.25, 2, 'max', True
        ),
        [maps(channels=2).double()],
    ),
    'roi_pool': lambda: (
        lambda it: ops.roi_pool(it, operator_cases.regions(4).double(), (2, 2), 0.25),
        [maps(channels=2).double()],
    ),
    'roi_align_rotated': lambda: (
        lambda it: ops.RoIAlignRotated((2, 2), 0.25, 2)(it, operator_cases.regions(4, 6).double()),
        [maps(channels=2).double()],
    ),
    'border_align': lambda: (
        lambda it: ops.border_align(it, boxes(6, size=8.0).view(2, 3, 4).double(), 3),
        [maps().double()],
    ),
    'deform_conv': lambda: (
        lambda *it: ops.deform_conv2d(*it, 1, 1, 1, 1, 2),
        [
            maps(channels=4).double()[:, :, :4, :4],
            random(2, 36, 4, 4, seed=2).double(),
            random(2, 4, 3, 3, seed=1).double(),
        ],
    ),
    'modulated_deform_conv': lambda: (
        lambda *it: ops.modulated_deform_conv2d(*it, 1, 1, 1, 2, 1),
        [
            maps(channels=4).double()[:, :, :4, :4],
            random(2, 18, 4, 4, seed=2).double(),
            random(2, 9, 4, 4, seed=3).double(),
            random(2, 2, 3, 3, seed=1).double(),
            random(2, seed=4).double(),
        ],
    ),
    'carafe': lambda: (
        lambda *it: ops.carafe(*it, 3, 2, 2),
        [maps(channels=4).double()[..., :3, :3], random(2, 18, 6, 6, seed=1).double()],
    ),
    'sigmoid_focal_loss': lambda: (
        lambda it: ops.sigmoid_focal_loss(it, torch.arange(5) % 4, 2.0, 0.25, None, 'mean'),
        [random(5, 3).double()],
    ),
    'softmax_focal_loss': lambda: (
        lambda it: ops.softmax_focal_loss(it * 1, torch.arange(5) % 3, 2.0, 0.25, None, 'mean'),
        [random(5, 3).double()],
    ),
    'deformable_attention': lambda: (
        lambda *it: attention(*it, *attention_inputs(double)[1]),
        [it.detach() for it in attention_inputs(double)[0]],
    ),
    'rotated_feature_align': lambda: (
        lambda it: ops.rotated_feature_align(
            it, operator_cases.rotated_boxes(70).view(2, 5, 7, 5).double(), 0.25, 5
        ),
        [maps(channels=2).double()],
    ),
}


@pytest.mark.parametrize('name', GRADIENTS)
def test_operator__gradients_in_double_precision(source, name):
    function, inputs = GRADIENTS[name]()
    assert torch.autograd.gradcheck(
        function, [it.clone().requires_grad_() for it in inputs], fast_mode=True
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_operator__half_precision_and_autocast(source, dtype):
    """The compiled operators refuse half precision on a CPU; these compute it in float32."""
    rois = operator_cases.regions(6)
    found = ops.roi_align(maps().to(dtype), rois.to(dtype), (2, 3), 0.25, 2, 'avg', True)
    assert found.dtype == dtype
    expected = ops.roi_align(maps().to(dtype).float(), rois.to(dtype).float(), (2, 3), 0.25, 2)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    layer = ops.DeformConv2dPack(8, 4, 3, padding=1)
    expected = layer(maps())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = layer(maps())
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_missing_operator__is_named_with_the_remedy():
    with pytest.raises(
        NotImplementedError, match=r"operator 'psamask_forward'.*in place of mmcv-lite"
    ):
        ops.PSAMask('collect', (3, 3))(random(1, 9, 4, 4))


def test_compiled_operators__are_never_replaced():
    if COMPILED:
        assert not isinstance(sys.modules['mmcv._ext'], Operators)
        assert importlib.util.find_spec('mmcv._ext').origin.endswith('.so')
    else:
        assert sys.modules['mmcv._ext'].get_compiler_version() == 'none (operators of rdimkd_det)'


@pytest.mark.skipif(COMPILED, reason='mmcv has compiled operators')
def test_torchvision__that_does_not_fit_torch_is_replaced_and_logged_once(tmp_path):
    """What the package index's torchvision raises beside a torch without CUDA."""
    (tmp_path / 'torchvision.py').write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    script = (
        'import rdimkd_det, torch\n'
        'from mmcv.ops import nms\n'
        'boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]])\n'
        'for _ in range(2): print(nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist())'
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    assert done.stdout.count('[0]') == 2
    message = (
        'mmcv has no compiled operators; rdimkd_det provides them by plain torch (torchvision does '
        'not load: operator torchvision::nms does not exist)'
    )
    assert (done.stdout + done.stderr).count(message) == 1


def test_nms__many_blocks(source, monkeypatch):
    """Blocks change nothing: as many boxes as several of them, against one loop over all."""
    monkeypatch.setattr('rdimkd_det.host.ops.suppression.BLOCK', 7)
    given, ranked = boxes(60), scores(60)
    kept = ops.nms(given, ranked, 0.3)[1].tolist()
    expected = []
    for box in ranked.argsort(descending=True).tolist():
        overlaps = ops.bbox_overlaps(given[[box]], given[expected]) if expected else torch.zeros(1)
        if not (overlaps > 0.3).any():
            expected.append(box)
    assert kept == expected


@pytest.mark.parametrize('labels, kept', [(None, [0, 2]), ([0, 1, 0], [0, 1, 2])])
def test_nms_rotated__labels(source, labels, kept):
    dets = torch.tensor([[5.0, 5, 4, 2, 0.3], [5, 5, 4, 2, 0.31], [30, 5, 4, 2, 0]])
    labels = labels and torch.tensor(labels, dtype=torch.float32)
    found = ops.nms_rotated(dets, torch.tensor([0.9, 0.8, 0.7]), 0.5, labels)[1]
    assert found.tolist() == kept


def test_rotated_iou__known_areas():
    square = torch.tensor([[10.0, 10, 2, 2, 0]])
    others = torch.tensor(
        [[10.0, 10, 2, 2, 0], [11, 10, 2, 2, 0], [10, 10, 2, 2, np.pi / 4], [15, 10, 2, 2, 0]]
    )
    octagon = 8 * (2**0.5 - 1)  # what a square shares with itself, turned by 45 degrees
    expected = torch.tensor([[1, 1 / 3, octagon / (8 - octagon), 0]])
    torch.testing.assert_close(ops.box_iou_rotated(square, others), expected.float())


def test_differentiable_iou__known_areas_and_gradients():
    """mmcv compiles its operator, which sorts corners of the shared polygon, for GPUs only."""
    one, other = operator_cases.rotated_boxes(200), operator_cases.rotated_boxes(200, seed=5)
    other[0] = one[0]
    other[1] = one[1] * torch.tensor([1, 1, 0.5, 0.5, 1])  # inside
    found = ops.diff_iou_rotated_2d(one[None], other[None])[0]
    torch.testing.assert_close(found, ops.box_iou_rotated(one, other, aligned=True))
    assert found[1] == pytest.approx(0.25) and (found > 0.1).sum() > 20

    overlapping = torch.stack([one, other])[:, found > 0.1][:, 2:].double()
    inputs = [it[None].clone().requires_grad_() for it in overlapping]
    assert torch.autograd.gradcheck(ops.diff_iou_rotated_2d, inputs, fast_mode=True)


# Detectors that need another operator each.
DETECTORS = {
    'roi_align': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'deform_conv': 'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'modulated_deform_conv': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'carafe': 'carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py',
    'masked_conv': 'guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py',
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detector__trains_and_detects(name):
    """With the same losses, gradients and boxes as with compiled operators, where there are any."""
    found = train_and_detect(DETECTORS[name])
    assert all(torch.isfinite(it).all() for it in found.values())
    if COMPILED and name not in ('carafe', 'masked_conv'):  # these need a GPU
        with pytest.MonkeyPatch.context() as patch:
            for module in list(sys.modules.values()):
                if isinstance(getattr(module, 'ext_module', None), Operators):
                    patch.setattr(module, 'ext_module', sys.modules['mmcv._ext'])
            expected = train_and_detect(DETECTORS[name])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def train_and_detect(config):
    """Return the losses of one batch, the first weight's gradient, and the boxes of an image."""
    torch.manual_seed(0)
    model = MODELS.build(small_config(config, depth=18 if 'dcn' not in config else None).model)
    model.init_weights()
    batch = model.data_preprocessor(random_batch(num_classes=3), training=True)
    total, losses = model.parse_losses(model(**batch, mode='loss'))
    total.backward()
    gradient = next(p for p in model.parameters() if p.grad is not None and p.grad.any()).grad
    with torch.no_grad():
        model.eval()
        detected = model.test_step(random_batch(num=1))[0].pred_instances
    return {**losses, 'gradient': gradient, 'scores': detected.scores[:5]}
