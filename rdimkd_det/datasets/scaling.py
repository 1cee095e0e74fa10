"""Larger training images for a teacher whose student gets them shrunk by ``image_scale``."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping

from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from ..errors import ConfigError
from ..files.configs import mappings
from ..host.registry import find_type
from ..options import type_name

# The options in pixels of the transforms that set or need the size of an image.
IN_PIXELS = {
    'Resize': ('scale', 'scale_factor'),
    'FixScaleResize': ('scale', 'scale_factor'),
    'FixShapeResize': ('width', 'height'),
    'ResizeShortestEdge': ('scale', 'max_size'),
    'RandomResize': ('scale',),
    'RandomChoiceResize': ('scales',),
    'Pad': ('size',),
    'RandomCrop': ('crop_size',),
    'RandomCenterCropPad': ('crop_size', 'border'),
    'RandomAffine': ('border',),
    'Mosaic': ('img_scale',),
    'CachedMosaic': ('img_scale',),
    'MixUp': ('img_scale',),
    'CachedMixUp': ('img_scale',),
    # MMYOLO's own
    'YOLOv5KeepRatioResize': ('scale',),
    'LetterResize': ('scale',),
    'YOLOv5RandomAffine': ('border',),
    'Mosaic9': ('img_scale',),
    'YOLOXMixUp': ('img_scale',),
}


def enlarge_training(cfg: Config, scale: int) -> str:
    """Scale the images of a distilled training for its teacher, in place; say what changed."""
    if not isinstance((cfg.get('train_dataloader') or {}).get('dataset'), Mapping):
        raise ConfigError(f'--teacher-scale: config {cfg.filename} has no train_dataloader.')
    preprocessor = cfg.model.student.get('data_preprocessor') or {}
    for augment in preprocessor.get('batch_augments') or ():
        raise ConfigError(
            f'--teacher-scale: data_preprocessor.batch_augments of the student has '
            f'{type_name(augment)}, which sets sizes behind the data pipeline; write the config by '
            f'hand (docs/config.md, image_scale), with this augmentation at the larger size.'
        )
    switched = [hook.get('switch_pipeline') for hook in cfg.get('custom_hooks') or ()]
    changes = _enlarge_all([cfg.train_dataloader.dataset, switched], scale)
    if not changes:
        raise ConfigError(
            f'--teacher-scale: the training pipeline of {cfg.filename} has no transform that sets '
            f'the size of images ({", ".join(IN_PIXELS)}); add a Resize.'
        )
    cfg.model.teacher.image_scale = scale
    return (
        f'training images are {scale} times as large, for the teacher '
        f'({", ".join(dict.fromkeys(changes))}); the student gets them shrunk by {scale}'
    )


def enlarged(pipeline: list, scale: int) -> list[dict]:
    """Return a copy of a pipeline that makes larger images."""
    pipeline = copy.deepcopy(pipeline)
    _enlarge_all(pipeline, scale)
    return pipeline


def _enlarge_all(entry: object, scale: int) -> list[str]:
    """Scale all transforms in an entry, in place, also those inside of others, as RandomChoice's.

    One that is there several times is scaled once.
    """
    steps = {id(step): step for step in mappings(entry)}.values()
    return [change for step in steps for change in _enlarge(step, scale)]


def _enlarge(step: Mapping, scale: int) -> Iterator[str]:
    """Scale the options of a transform, in place, and yield what each becomes."""
    name = type_name(step).removeprefix('mmyolo.')
    if step.get('crop_type', 'absolute').startswith('relative'):
        return
    for option in IN_PIXELS.get(name, ()):
        value = step.get(option, _default(step, option))
        if value is None:
            continue
        step[option] = _times(value, scale)
        if step[option] != value:
            yield f'{name}.{option} {value} -> {step[option]}'


def _default(step: Mapping, option: str) -> object:
    parameter = inspect.signature(find_type(step, TRANSFORMS)).parameters.get(option)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _times(value: object, scale: int) -> object:
    if isinstance(value, (list, tuple)):
        return type(value)(_times(each, scale) for each in value)
    return value if isinstance(value, bool) else value * scale
