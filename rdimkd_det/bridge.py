"""``InputBridge``: gives the teacher the input that its own preprocessor would make."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from .errors import ConfigError
from .samples import image_sizes


class InputBridge:
    """Converts a batch from the student's preprocessor into the teacher's input.

    The result is what the teacher's preprocessor would have made of the same pixels. One affine
    map per channel undoes the student's normalisation and applies the teacher's, in the teacher's
    channel order. The area outside the images gets the teacher's padding value, and the batch is
    padded to the teacher's size divisor. The student's batch augmentations are kept: the teacher
    sees the augmented images. Where both preprocessors agree, the batch is returned as it is.

    With a ``scale``, the side of the teacher's images over that of the student's, the batch is then
    resized: it is padded before to sizes that become multiples of the teacher's divisor.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, scale: Fraction | int = 1) -> None:
        for side, preprocessor in (('student', student), ('teacher', teacher)):
            if not isinstance(preprocessor, ImgDataPreprocessor):
                raise ConfigError(
                    f"InputBridge: the {side}'s data_preprocessor is a "
                    f'{type(preprocessor).__name__}; it must be a DetDataPreprocessor (or derive '
                    f'from ImgDataPreprocessor), whose normalisation can be translated.'
                )
        mean_s, std_s = _statistics(student)
        mean_t, std_t = _statistics(teacher)
        self.flip_channels = student._channel_conversion != teacher._channel_conversion
        if self.flip_channels:
            mean_s, std_s = mean_s.flip(0), std_s.flip(0)
        self.scale = (std_s / std_t).float()
        self.shift = ((mean_s - mean_t) / std_t).float()
        self.same_values = not self.flip_channels and bool(
            (self.scale == 1).all() and (self.shift == 0).all()
        )
        self.student_divisor = student.pad_size_divisor
        self.input_scale = Fraction(scale)
        # In the student's pixels.
        self.teacher_divisor = (self.input_scale / teacher.pad_size_divisor).denominator
        self.pad_value = teacher.pad_value
        self.same_padding = self.same_values and student.pad_value == teacher.pad_value

    def __call__(self, inputs: Tensor, data_samples: Sequence | None = None) -> Tensor:
        """Convert a batch (N, C, H, W); ``inputs`` itself is returned if nothing differs.

        Without samples, whose 'img_shape' tells images from padding, every image fills the batch.
        """
        full = tuple(inputs.shape[2:])
        shapes = image_sizes(data_samples) or []
        target = tuple(
            self._target_size(size, max((shape[axis] for shape in shapes), default=size))
            for axis, size in enumerate(full)
        )
        if self.same_padding and target == full and self.input_scale == 1:
            return inputs
        outputs = inputs
        if not self.same_values:
            outputs = inputs.flip(1) if self.flip_channels else inputs
            self.scale, self.shift = self.scale.to(inputs.device), self.shift.to(inputs.device)
            outputs = torch.addcmul(self.shift, outputs, self.scale)
        # Positive pads, negative crops. Either way a copy: the fills must not touch `inputs`.
        margins = (0, target[1] - full[1], 0, target[0] - full[0])
        if any(margins):
            outputs = F.pad(outputs, margins, value=self.pad_value)
        elif outputs is inputs:
            outputs = inputs.clone()
        for image, (height, width) in zip(outputs, shapes):
            image[:, height:].fill_(self.pad_value)
            image[:, :, width:].fill_(self.pad_value)
        return outputs if self.input_scale == 1 else self._resized(outputs)

    def _resized(self, images: Tensor) -> Tensor:
        size = [int(side * self.input_scale) for side in images.shape[2:]]
        smaller = self.input_scale < 1
        return F.interpolate(images, size, mode='bilinear', align_corners=False, antialias=smaller)

    def _target_size(self, size: int, largest_image: int) -> int:
        """Return the size of the teacher's batch along one axis, padded by the teacher's divisor.

        A size that the student's divisor does not explain comes from a batch augmentation and
        counts as image.
        """
        padded_by_divisor = ceil(largest_image / self.student_divisor) * self.student_divisor
        unpadded = largest_image if size == padded_by_divisor else size
        return ceil(unpadded / self.teacher_divisor) * self.teacher_divisor

    @property
    def does_nothing(self) -> bool:
        """bool: Whether every batch is returned as it is."""
        same_size = self.student_divisor == self.teacher_divisor and self.input_scale == 1
        return self.same_padding and same_size

    def __repr__(self) -> str:
        if self.does_nothing:
            return 'InputBridge(nothing to do)'
        resized = '' if self.input_scale == 1 else f', input_scale={float(self.input_scale):g}'
        return (
            f'InputBridge(flip_channels={self.flip_channels}, '
            f'scale={_rounded(self.scale)}, shift={_rounded(self.shift)}, '
            f'pad_value={self.pad_value}, pad_size_divisor={self.teacher_divisor}{resized})'
        )


def check_channels(preprocessor: nn.Module, channels: int, who: str) -> None:
    """Check that a preprocessor's normalisation is one of images with so many channels."""
    if not isinstance(preprocessor, ImgDataPreprocessor):
        return
    number = len(_statistics(preprocessor)[0])
    if number not in (1, channels):
        raise ConfigError(
            f"InputBridge: the {who}'s data_preprocessor has mean and std of {number} channels, "
            f'and its network takes images of {channels}; give one value each, for all channels.'
        )
    if channels != 3 and preprocessor._channel_conversion:
        raise ConfigError(
            f"InputBridge: the {who}'s data_preprocessor reverses the channels (bgr_to_rgb), and "
            f'its network takes images of {channels}, not of 3; set bgr_to_rgb=False.'
        )


def check_same_channels(student: int, teacher: int) -> None:
    """Check that two networks take the same images."""
    if student != teacher:
        raise ConfigError(
            f'InputBridge: the student takes images of {student} channel{"s" * (student > 1)}, the '
            f'teacher of {teacher}; both see the same images, so give a teacher that takes '
            f'{student}, or a student that takes {teacher}.'
        )


def _statistics(preprocessor: ImgDataPreprocessor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (3, 1, 1), float64, in the preprocessor's channel order.

    They are (1, 1, 1) where all channels have the same, however many there are.
    """
    if not preprocessor._enable_normalize:
        return torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double()
    return tuple(values.detach().cpu().double() for values in (preprocessor.mean, preprocessor.std))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten().tolist()]
