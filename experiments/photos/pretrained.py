"""Rows with ImageNet weights: in the student's backbone, or in a teacher that detects nothing."""

from __future__ import annotations

from ..study import Experiment

GROUPS = {
    'lite0': 'A student whose backbone is pretrained: GFL with EfficientNet-Lite0, 64 channels',
    'imagenet': 'A teacher that detects nothing: EfficientNet-Lite0, maps of 40, 112, 320 channels',
}
MODULE = {
    'module': {'type': 'experiments.photos.efficientnet_lite.make_teacher'},
    'mean': [127.0] * 3,
    'std': [128.0] * 3,
    'bgr': False,
}


def pretrained_rows(configs: str, fading: dict) -> list[Experiment]:
    """Return the rows of a set of photographs, whose configs are in a folder.

    ``fading`` are the overrides for a weight that fades half way.
    """
    lite0 = f'{configs}/gfl_lite0.py', f'{configs}/rdimkd_yolox_nano_gfl_lite0.py'
    imagenet = f'{configs}/rdimkd_imagenet_pico.py'
    detector = {'name': 'detector', 'config': f'{configs}/yolox_nano_teacher.py'}
    both = {'model.teacher': [detector, {'name': 'imagenet', **MODULE}]}
    return [
        Experiment(
            'lite0_plain',
            'plain student',
            ('lite0',),
            lite0[0],
            plain='lite0_plain',
            rival=None,
        ),
        Experiment(
            'lite0_rdimkd_p',
            'RdimKD-P',
            ('lite0',),
            lite0[1],
            teacher='teacher',
            plain='lite0_plain',
            rival=None,
        ),
        Experiment('imagenet_teacher', 'ImageNet weights', ('imagenet',), imagenet),
        Experiment(
            'imagenet_random',
            'the same network with random weights',
            ('imagenet',),
            imagenet,
            {'model.teacher.module.pretrained': False},
        ),
        Experiment(
            'imagenet_fading',
            'ImageNet weights, the weight fades over epochs 12 to 16',
            ('imagenet',),
            imagenet,
            fading,
        ),
        Experiment(
            'imagenet_and_detector',
            'both: the detector, and ImageNet weights',
            ('imagenet',),
            imagenet,
            both,
            teacher='teacher',
        ),
    ]
