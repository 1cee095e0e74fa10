"""Inputs of mmcv's operators, and what the operators make of them.

`python tests/host/operator_cases.py` in an environment with compiled operators writes
operator_values.safetensors, with which the stand-ins are compared where there is no compiler.
"""

from pathlib import Path

import torch
from mmcv import ops
from safetensors.torch import save_file

VALUES = Path(__file__).with_name('operator_values.safetensors')


def random(*shape, seed=0, low=-1.0, high=1.0):
    """Return the same numbers on any device; like all cases, on torch's default device."""
    generator = torch.Generator('cpu').manual_seed(seed)
    numbers = torch.rand(*shape, generator=generator, device='cpu') * (high - low) + low
    return numbers.to(torch.get_default_device())


def boxes(num, seed=0, size=60.0):
    start, sides = random(num, 2, seed=seed, low=0, high=size), random(num, 2, seed=seed + 1, low=2)
    return torch.cat([start, start + sides.abs() * size / 2], dim=1)


def rotated_boxes(num, seed=0):
    center, angle = (
        random(num, 2, seed=seed, low=0, high=40),
        random(num, 1, seed=seed, low=-3, high=3),
    )
    return torch.cat([center, random(num, 2, seed=seed + 1, low=2, high=25), angle], dim=1)


def scores(num, seed=0):
    return random(num, seed=seed, low=0)


def regions(num, columns=5):
    """Regions of two images of 5 x 7 positions at stride 4; one lies outside, one has no area."""
    found = boxes(num, size=20.0)
    found[1] = torch.tensor([-90.0, -90.0, -60.0, -70.0])
    found[2] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    if columns == 6:
        found = torch.cat([rotated_boxes(num, seed=3)[:, :2] / 2, rotated_boxes(num)[:, 2:]], dim=1)
    image = torch.arange(num, dtype=found.dtype)[:, None] % 2
    return torch.cat([image, found], dim=1)


def with_gradients(function, *inputs):
    """Return a function's output, and the gradients of a weighted sum with respect to inputs."""
    leaves = [it.clone().requires_grad_() for it in inputs]
    output = function(*leaves)
    weights = random(*output.shape, seed=9).to(output)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), leaves)]


def maps(seed=0, channels=8):
    return random(2, channels, 5, 7, seed=seed)


def roi_align(num=6, mode='avg', ratio=0, aligned=True):
    rois = regions(num)
    return with_gradients(
        lambda it: ops.roi_align(it, rois, (2, 3), 0.25, ratio, mode, aligned), maps()
    )


def roi_align_of_none():
    none = torch.zeros(0, 5)
    return with_gradients(lambda it: ops.roi_align(it, none, (2, 3), 0.25, 0, 'avg', True), maps())


def roi_align_rotated(num=6, ratio=2, aligned=True, clockwise=False):
    layer = ops.RoIAlignRotated((2, 3), 0.25, ratio, aligned, clockwise)
    return with_gradients(lambda it: layer(it, regions(num, columns=6)), maps())


def deform_conv(groups=1, offset_groups=1, stride=1, padding=1, dilation=1):
    weight = random(6, 8 // groups, 3, 3, seed=1)
    size = ops.deform_conv2d(
        maps(),
        torch.zeros(2, 18 * offset_groups, *_out(stride, padding, dilation)),
        weight,
        stride,
        padding,
        dilation,
        groups,
        offset_groups,
    ).shape[2:]
    offset = random(2, 18 * offset_groups, *size, seed=2, low=-4, high=4)
    return with_gradients(
        lambda *it: ops.deform_conv2d(*it, stride, padding, dilation, groups, offset_groups),
        maps(),
        offset,
        weight,
    )


def modulated_deform_conv(
    groups=1, offset_groups=1, stride=1, padding=1, dilation=1, bias=True, larger=0
):
    weight = random(6, 8 // groups, 3, 3, seed=1)
    size = [side + larger for side in _out(stride, padding, dilation)]
    offset = random(2, 18 * offset_groups, *size, seed=2, low=-4, high=4)
    mask = random(2, 9 * offset_groups, *size, seed=3, low=0)
    inputs = [maps(), offset, mask, weight, *([random(6, seed=4)] if bias else [])]
    options = (stride, padding, dilation, groups, offset_groups)
    return with_gradients(
        lambda a, b, c, d, e=None: ops.modulated_deform_conv2d(a, b, c, d, e, *options), *inputs
    )


def _out(stride, padding, dilation):
    return [(side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in (5, 7)]


def nms(num=40, threshold=0.4, offset=0, **options):
    return list(ops.nms(boxes(num), scores(num), threshold, offset, **options))


def batched_nms(num=60, **options):
    classes = torch.arange(num) % 3
    return list(
        ops.batched_nms(
            boxes(num), scores(num), classes, dict(type='nms', iou_threshold=0.5), **options
        )
    )


def soft_nms(num=40, method='linear', offset=0, tied=False):
    given = (scores(num) * 5).round() / 5 if tied else scores(num)
    return list(ops.soft_nms(boxes(num), given, 0.3, 0.5, 0.1, method, offset))


def nms_match(num=40):
    dets = torch.cat([boxes(num), scores(num)[:, None]], dim=1)
    groups = ops.nms_match(dets, 0.4)
    return [
        torch.tensor([len(it) for it in groups]),
        *([torch.cat(list(groups))] if groups else []),
    ]


def nms_rotated(num=40):
    dets, kept = ops.nms_rotated(rotated_boxes(num), scores(num), 0.3)
    return [dets, *([] if kept is None else [kept])]


def box_iou_rotated(mode='iou', aligned=False, num=30):
    one, other = rotated_boxes(num), rotated_boxes(num if aligned else 20, seed=5)
    if num:
        other[:3] = one[:3]  # the same box, all corners of which coincide
    return [ops.box_iou_rotated(one, other, mode, aligned)]


def bbox_overlaps(mode='iou', aligned=False, offset=0):
    return [ops.bbox_overlaps(boxes(9), boxes(9 if aligned else 4, seed=4), mode, aligned, offset)]


def rotated_feature_align(points=1):
    best = rotated_boxes(70, seed=6).view(2, 5, 7, 5)
    return with_gradients(lambda it: ops.rotated_feature_align(it, best, 0.25, points), maps())


def active_rotated_filter():
    # Every rotation permutes the entries of a filter.
    with torch.device('cpu'):
        generators = [torch.Generator().manual_seed(it) for it in range(8)]
        order = [torch.randperm(36, generator=it) + 1 for it in generators]
        indices = torch.stack(order, dim=1).int().view(4, 3, 3, 8)
    indices = indices.to(torch.get_default_device())
    return with_gradients(lambda it: ops.active_rotated_filter(it, indices), random(3, 2, 4, 3, 3))


# Name to a function that takes no arguments and returns tensors.
CASES = {
    'nms': nms,
    'nms_offset': lambda: nms(offset=1),
    'nms_limited': lambda: nms(score_threshold=0.2, max_num=7),
    'nms_many': lambda: nms(num=700, threshold=0.7),
    'nms_one': lambda: nms(num=1),
    'nms_empty': lambda: nms(num=0),
    'batched_nms': batched_nms,
    'batched_nms_agnostic': lambda: batched_nms(class_agnostic=True),
    'soft_nms_linear': soft_nms,
    'soft_nms_gaussian': lambda: soft_nms(method='gaussian'),
    'soft_nms_naive': lambda: soft_nms(method='naive', offset=1),
    'soft_nms_ties': lambda: soft_nms(tied=True),
    'soft_nms_one': lambda: soft_nms(num=1),
    'soft_nms_empty': lambda: soft_nms(num=0),
    'nms_match': nms_match,
    'nms_match_one': lambda: nms_match(num=1),
    'nms_match_empty': lambda: nms_match(num=0),
    'nms_rotated': nms_rotated,
    'nms_rotated_one': lambda: nms_rotated(num=1),
    'nms_rotated_empty': lambda: nms_rotated(num=0),
    'roi_align': roi_align,
    'roi_align_fixed_grid': lambda: roi_align(ratio=2),
    'roi_align_unaligned': lambda: roi_align(aligned=False),
    'roi_align_max': lambda: roi_align(mode='max', ratio=2),
    'roi_align_empty': roi_align_of_none,
    'roi_align_rotated': roi_align_rotated,
    'roi_align_rotated_adaptive': lambda: roi_align_rotated(ratio=0, clockwise=True),
    'roi_align_rotated_unaligned': lambda: roi_align_rotated(aligned=False),
    'deform_conv': deform_conv,
    'deform_conv_groups': lambda: deform_conv(groups=2, offset_groups=4),
    'deform_conv_strided': lambda: deform_conv(stride=2, padding=2, dilation=2),
    'modulated_deform_conv': modulated_deform_conv,
    'modulated_deform_conv_groups': lambda: modulated_deform_conv(
        groups=2, offset_groups=4, bias=False
    ),
    'modulated_deform_conv_larger_offsets': lambda: modulated_deform_conv(larger=3),
    'modulated_deform_conv_strided': lambda: modulated_deform_conv(stride=2, padding=0),
    'box_iou_rotated': box_iou_rotated,
    'box_iou_rotated_iof': lambda: box_iou_rotated(mode='iof'),
    'box_iou_rotated_aligned': lambda: box_iou_rotated(aligned=True),
    'bbox_overlaps': bbox_overlaps,
    'bbox_overlaps_aligned': lambda: bbox_overlaps('iof', aligned=True, offset=1),
    'rotated_feature_align': rotated_feature_align,
    'rotated_feature_align_corners': lambda: rotated_feature_align(points=5),
    'active_rotated_filter': active_rotated_filter,
}


def roi_pool():
    return with_gradients(lambda it: ops.roi_pool(it, regions(6), (2, 3), 0.25), maps())


def border_align():
    given = boxes(6, size=8.0).view(2, 3, 4) - 2
    return with_gradients(lambda it: ops.border_align(it, given, 3), maps())


def carafe():
    masks = random(2, 2 * 5**2, 10, 14, seed=1)
    return with_gradients(lambda *it: ops.carafe(*it, 5, 2, 2), maps(), masks)


def masked_conv():
    mask, weight = (random(1, 5, 7, seed=2) > 0.2).float(), random(4, 8, 3, 3, seed=1)
    return [ops.masked_conv2d(maps()[:1], mask, weight, random(4, seed=3), 1)]


def focal_loss(function):
    # mmcv's softmax_focal_loss has gradients of a sum or mean only.
    labels, weight = torch.arange(9) % 5, random(5, low=0)
    return with_gradients(
        lambda it: function(it, labels, 2.0, 0.25, weight, 'sum')[None],
        random(9, 5, low=-9, high=9),
    )


def deformable_attention():
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    levels = torch.tensor([[5, 7], [2, 3]]), torch.tensor([0, 35])
    value, weights = random(2, 41, 2, 4), random(2, 6, 2, 2, 3, seed=1, low=0)
    locations = random(2, 6, 2, 2, 3, 2, seed=2, low=-0.2, high=1.2)
    return with_gradients(
        lambda v, p, w: function.apply(v, *levels, p, w, 64), value, locations, weights
    )


# Operators that mmcv compiles for GPUs only, so that no values of a CPU can be kept.
GPU_CASES = {
    'roi_pool': roi_pool,
    'border_align': border_align,
    'carafe': carafe,
    'masked_conv': masked_conv,
    'sigmoid_focal_loss': lambda: focal_loss(ops.sigmoid_focal_loss),
    'softmax_focal_loss': lambda: focal_loss(ops.softmax_focal_loss),
    'deformable_attention': deformable_attention,
    'corner_pool': lambda: with_gradients(ops.CornerPool('top'), maps()),
}


if __name__ == '__main__':
    found = {
        f'{name}.{index}': it.contiguous()
        for name, case in CASES.items()
        for index, it in enumerate(case())
    }
    save_file(found, VALUES)
