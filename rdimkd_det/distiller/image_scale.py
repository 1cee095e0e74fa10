"""``image_scale``: a student that gets the images of the data pipeline smaller than its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import BaseBoxes
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import Level
from ..options import is_whole_number
from ..samples import image_sizes

Size = tuple[int, int]  # (H, W)


class ImageShrinker:
    """Shrinks a preprocessed batch and its data samples by a whole number.

    A pixel of the student covers exactly ``scale`` x ``scale`` pixels of the pipeline's image; the
    last row and column are repeated where its size is no multiple. So coordinates are divided by
    ``scale``, whatever the sizes, and the strides of two models compare. Each image is shrunk
    alone, since padding must not show at its edges, and padded as the student's preprocessor pads.
    """

    def __init__(self, scale: int, preprocessor: nn.Module) -> None:
        if not is_whole_number(scale, least=1):
            raise ConfigError(
                f'teacher: image_scale must be a whole number of 1 or more, by which the images '
                f"of the teacher are larger than the student's, got {scale!r}."
            )
        self.scale = scale
        self.divisor = getattr(preprocessor, 'pad_size_divisor', 1)
        self.pad_value = getattr(preprocessor, 'pad_value', 0)
        self.seg_pad_value = getattr(preprocessor, 'seg_pad_value', 255)

    def __call__(self, inputs: Tensor, data_samples: Sequence) -> tuple[Tensor, Sequence]:
        """Shrink inputs (N, 3, H, W) and copies of the samples; with scale 1 return both."""
        if self.scale == 1:
            return inputs, data_samples
        full = tuple(inputs.shape[2:])
        padded = self._padded(full)
        outputs = inputs.new_full((*inputs.shape[:2], *padded), float(self.pad_value))
        sizes = image_sizes(data_samples) or [full] * len(inputs)
        for image, output, (height, width) in zip(inputs, outputs, sizes):
            small = shrunk(image[:, :height, :width], self.scale)
            output[:, : small.shape[1], : small.shape[2]] = small
        if isinstance(data_samples, Mapping):
            return outputs, self._fast_samples(data_samples, padded)
        return outputs, [self._sample(sample, full, padded) for sample in data_samples]

    def _padded(self, size: Size) -> Size:
        return tuple(ceil(side / self.divisor) * self.divisor for side in self._shrunk(size))

    def _shrunk(self, size: Size) -> Size:
        return tuple(ceil(side / self.scale) for side in size)

    def _sample(self, sample: BaseDataElement, full: Size, padded: Size) -> BaseDataElement:
        small, metainfo = sample.new(), {'batch_input_shape': padded}
        if 'img_shape' in sample:
            height, width, *channels = sample.img_shape
            metainfo['img_shape'] = (*self._shrunk((height, width)), *channels)
        if 'pad_shape' in sample:
            metainfo['pad_shape'] = self._padded(sample.pad_shape[:2])
        if 'scale_factor' in sample:
            metainfo['scale_factor'] = tuple(it / self.scale for it in sample.scale_factor)
        small.set_metainfo(metainfo)
        for name, value in sample.items():
            if isinstance(value, InstanceData):
                setattr(small, name, self._instances(value, full, padded))
            elif isinstance(value, PixelData) and 'sem_seg' in value:
                setattr(small, name, self._segmentation(value, full, padded))
        return small

    def _fast_samples(self, samples: Mapping, padded: Size) -> dict:
        boxes, others = samples['bboxes_labels'], samples.keys() - {'bboxes_labels', 'img_metas'}
        if others:
            raise ConfigError(
                f'teacher: image_scale shrinks the boxes of a batch of yolov5_collate, which also '
                f'has {", ".join(sorted(others))}; train without them, or without image_scale.'
            )
        small = torch.cat([boxes[:, :2], scaled_boxes(boxes[:, 2:], 1 / self.scale)], 1)
        metas = [{'batch_input_shape': padded}] * len(samples['img_metas'])
        return {'bboxes_labels': small, 'img_metas': metas}

    def _instances(self, instances: InstanceData, full: Size, padded: Size) -> InstanceData:
        small = instances.new()
        if 'bboxes' in instances:
            small.bboxes = scaled_boxes(instances.bboxes, 1 / self.scale)
        if 'masks' in instances:
            masks = instances.masks
            size = self._shrunk((masks.height, masks.width))
            small.masks = masks.pad(tuple(side * self.scale for side in size)).resize(size)
            if (masks.height, masks.width) == full:  # padded to the batch
                small.masks = small.masks.pad(padded)
        return small

    def _segmentation(self, segmentation: PixelData, full: Size, padded: Size) -> PixelData:
        labels, centre = segmentation.sem_seg, self.scale // 2
        size = self._shrunk(labels.shape[1:])
        labels = _enlarged(labels, tuple(side * self.scale for side in size), self.seg_pad_value)
        labels = labels[:, centre :: self.scale, centre :: self.scale]
        if segmentation.sem_seg.shape[1:] == full:
            labels = _enlarged(labels, padded, self.seg_pad_value)
        return PixelData(metainfo=dict(segmentation.metainfo_items()), sem_seg=labels)


def in_pixels_of_student(level: Level, scale: int) -> Level:
    """Return a teacher's level with its stride in pixels of the student's, smaller images."""
    stride = level.stride / scale
    return replace(level, stride=int(stride) if stride.is_integer() else stride)


def shrunk(image: Tensor, scale: int) -> Tensor:
    """Shrink an image (C, H, W) by a whole number, without aliasing."""
    height, width = (ceil(side / scale) for side in image.shape[1:])
    margins = (0, width * scale - image.shape[2], 0, height * scale - image.shape[1])
    whole = F.pad(image[None], margins, mode='replicate')
    return F.interpolate(whole, size=(height, width), mode='bilinear', antialias=True)[0]


def scaled_boxes(boxes: Tensor | BaseBoxes, factor: float) -> Tensor | BaseBoxes:
    """Scale boxes: of two corners, of four, or rotated ones (x, y, w, h, angle)."""
    if isinstance(boxes, BaseBoxes):
        boxes = boxes.clone()
        boxes.rescale_((factor, factor))
        return boxes
    factors = boxes.new_full(boxes.shape[-1:], factor)
    if len(factors) == 5:  # the angle stays
        factors[-1] = 1
    return boxes * factors


def _enlarged(labels: Tensor, size: Size, value: int) -> Tensor:
    margins = (0, size[1] - labels.shape[2], 0, size[0] - labels.shape[1])
    return F.pad(labels, margins, value=value)
