"""Input formats (channel order and normalisation): of a data preprocessor, and well-known ones.

Images of another number of channels than three have no order, and one mean and deviation for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmengine.model import ImgDataPreprocessor
from torch import Tensor


@dataclass(frozen=True)
class InputFormat:
    """Channel order and normalisation (in that order of the channels) of a network's input."""

    rgb: bool  # whether the channels of MMDetection's BGR images are reversed
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def of(cls, preprocessor: ImgDataPreprocessor, channels: int = 3) -> InputFormat:
        """Return the format that a preprocessor produces of images of so many channels."""
        rgb = bool(preprocessor._channel_conversion)
        length = 3 if channels == 3 else 1
        if not preprocessor._enable_normalize:
            return cls(rgb, (0.0,) * length, (1.0,) * length)
        mean, std = (_rounded(it, length) for it in (preprocessor.mean, preprocessor.std))
        return cls(rgb, mean, std)

    def swapped(self) -> InputFormat:
        """Return the same normalisation with the other channel order."""
        return replace(self, rgb=not self.rgb)

    def build(self, like: ImgDataPreprocessor) -> ImgDataPreprocessor:
        """Build a preprocessor of this format that pads like another one."""
        return ImgDataPreprocessor(
            mean=self.mean,
            std=self.std,
            bgr_to_rgb=self.rgb,
            pad_size_divisor=like.pad_size_divisor,
            pad_value=like.pad_value,
        )

    def as_config(self) -> str:
        """Return the format as options of a ``data_preprocessor``."""
        order = f', bgr_to_rgb={self.rgb}' if len(self.mean) == 3 else ''
        return f'mean={_listed(self.mean)}, std={_listed(self.std)}{order}'

    def __str__(self) -> str:
        order = ('RGB, ' if self.rgb else 'BGR, ') if len(self.mean) == 3 else ''
        return f'{order}mean {_listed(self.mean)}, std {_listed(self.std)}'


IMAGENET = InputFormat(True, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
WELL_KNOWN = {
    'torchvision, RGB': IMAGENET,
    'torchvision, BGR': InputFormat(False, IMAGENET.mean[::-1], IMAGENET.std[::-1]),
    'caffe, BGR': InputFormat(False, IMAGENET.mean[::-1]),
    'caffe, RGB': InputFormat(True, IMAGENET.mean),
    'from 0 to 1, RGB': InputFormat(True, std=(255.0,) * 3),
    'from 0 to 1, BGR': InputFormat(False, std=(255.0,) * 3),
    'from -1 to 1, RGB': InputFormat(True, mean=(127.5,) * 3, std=(127.5,) * 3),
    'from 0 to 255, RGB': InputFormat(True),
    'from 0 to 255, BGR': InputFormat(False),
}
WITHOUT_ORDER = {
    'from 0 to 1': InputFormat(False, (0.0,), (255.0,)),
    'from -1 to 1': InputFormat(False, (127.5,), (127.5,)),
    'from 0 to 255': InputFormat(False, (0.0,), (1.0,)),
}


def candidates(configured: InputFormat) -> dict[str, InputFormat]:
    """Return the formats that a network may have been trained with, the configured one first."""
    named = {'as configured': configured}
    if len(configured.mean) == 3:
        named.update({'as configured, channels swapped': configured.swapped(), **WELL_KNOWN})
    else:
        named.update(WITHOUT_ORDER)
    names = {format: name for name, format in reversed(named.items())}
    return {name: format for name, format in named.items() if names[format] == name}


def _rounded(values: Tensor, length: int) -> tuple[float, ...]:
    # 123.675 is 123.67500305 in a float32 buffer.
    return tuple(round(float(value), 4) for value in values.flatten().expand(length))


def _listed(values: Sequence[float]) -> str:
    return f'[{", ".join(f"{value:g}" for value in values)}]'
