"""The data samples of a batch: a list, or the dict of MMYOLO's fast data path.

MMYOLO's ``yolov5_collate`` makes a dict of one tensor ``bboxes_labels`` (M, 6), of image, label and
corners, and its preprocessors add ``img_metas`` with the size of the batch. Images have no metainfo
of their own there, and all of them fill the batch: its pipelines pad before that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from .options import type_name


def fast_collate(dataloader: Mapping) -> str:
    """Return the ``collate_fn`` of a data loader whose batches have such a dict, else ''."""
    name = type_name(dataloader.get('collate_fn') or {})
    return name if name.endswith('yolov5_collate') else ''


def image_sizes(
    data_samples: Sequence | Mapping | None, scale: int = 1
) -> list[tuple[int, int]] | None:
    """Return the (H, W) in pixels of each image of a batch before padding; None if unknown.

    They are those of images that are ``scale`` times smaller.
    """
    if isinstance(data_samples, Mapping):
        return None
    sizes = [getattr(sample, 'img_shape', None) for sample in data_samples or ()]
    if None in sizes:
        return None
    return [tuple(ceil(side / scale) for side in size[:2]) for size in sizes]


def any_object(data_samples: Sequence | Mapping) -> bool:
    """Return whether a labelled batch has an object; True if boxes are not known, as of masks."""
    if isinstance(data_samples, Mapping):
        return len(data_samples['bboxes_labels']) > 0
    known = [it.gt_instances for it in data_samples if 'gt_instances' in it]
    return len(data_samples) > 0 and (not known or any(len(instances) for instances in known))


def one_per_image(data_samples: Sequence | Mapping, inputs: Tensor) -> Sequence:
    """Return a data sample for each image of a batch (N, C, H, W); of a dict, copies of its boxes.

    On a GPU that waits for the device.
    """
    if not isinstance(data_samples, Mapping):
        return data_samples
    size, found = tuple(inputs.shape[2:]), data_samples['bboxes_labels']
    metainfo = {name: size for name in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')}
    samples = [DetDataSample(metainfo={**metainfo, 'scale_factor': (1.0, 1.0)}) for _ in inputs]
    for number, sample in enumerate(samples):
        own = found[found[:, 0] == number]
        sample.gt_instances = InstanceData(labels=own[:, 1].long(), bboxes=own[:, 2:])
    return samples
