"""How an image becomes the input of an exported detector, read from its test pipeline."""

from __future__ import annotations

from mmdet.datasets.transforms import Pad, Resize
from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from ..errors import ConfigError
from ..files.configs import leaves_of
from ..options import explained, type_name

# They neither scale nor change an image, or only where it is read.
NO_CHANGE = ('LoadImageFromFile', 'LoadAnnotations', 'PackDetInputs')


def input_recipe(config: Config) -> dict:
    """Return what to do to an image file before it is the input, in JSON types.

    ``resize`` keeps the ratio if it has a 'long_side' and 'short_side' (the largest size within
    both), else it has 'width' and 'height'; ``pad`` is at the right and below, to 'width' and
    'height', or to a 'square' and a multiple of 'divisor'. Either is None if there is none.

    Raises:
        ConfigError: There is no test pipeline, or it has other steps.
    """
    pipeline = next(leaves_of(config, 'test'), {}).get('pipeline')
    if not pipeline:
        raise ConfigError(
            '--end-to-end: the config has no test_dataloader, whose pipeline says how to resize an '
            'image; give a config that has: --config.'
        )
    recipe = dict(layout='NCHW', dtype='uint8', channels='BGR', resize=None, pad=None)
    for step in pipeline:
        name = type_name(step)
        if name in NO_CHANGE:
            continue
        # A second one, or a Resize after the Pad, is none that the recipe tells.
        told = recipe['pad'] or (name == 'Resize' and recipe['resize'])
        with explained(f'test pipeline: {name}'):
            part = None if told or name not in READ else READ[name](TRANSFORMS.build(dict(step)))
        if part is None:
            raise ConfigError(
                f'--end-to-end: the test pipeline has {dict(step)}; the model can tell its users '
                f'only of one Resize(scale=...) and one Pad after it; give a config: --config.'
            )
        recipe[name.lower()] = part
    return recipe


def _resize(resize: Resize) -> dict | None:
    if not isinstance(resize.scale, (list, tuple)) or resize.interpolation != 'bilinear':
        return None
    if resize.keep_ratio:
        return dict(long_side=max(resize.scale), short_side=min(resize.scale))
    return dict(width=resize.scale[0], height=resize.scale[1])


def _pad(pad: Pad) -> dict | None:
    if pad.padding_mode != 'constant':
        return None
    value = pad.pad_val.get('img', 0)
    value = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if pad.size is not None:
        return dict(width=pad.size[0], height=pad.size[1], value=value)
    return dict(square=pad.pad_to_square, divisor=pad.size_divisor or 1, value=value)


READ = {'Resize': _resize, 'Pad': _pad}
