"""The whole teacher with its head, which training never needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from mmdet.structures.mask import PolygonMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..distiller.distillation import Distillation
from ..distiller.inference import trained_detector
from ..errors import ConfigError


def build_detector(part: Distillation, device: torch.device | str) -> nn.Module:
    """Build a teacher with its head, and load all of its weights strictly."""
    source = part.teacher.source
    if source.model is None:
        raise ConfigError(f'teacher: {source.name} is a module without a detection head.')
    detector = trained_detector(source.model, source.checkpoint, 'teacher', source.name)
    return detector.requires_grad_(False).to(device)


def at_size_of(inputs: Tensor, data_samples: Sequence) -> Sequence:
    """Copy data samples, and set their padded size to that of a batch that was padded again."""
    samples = deepcopy(list(data_samples))
    for sample in samples:
        sample.set_metainfo({'batch_input_shape': tuple(inputs.shape[2:])})
    return samples


def with_masks(instances: InstanceData, size: tuple[int, int]) -> InstanceData:
    """Give instances without masks their boxes as masks, which a mask head accepts."""
    if 'masks' not in instances:
        corners = instances.bboxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].cpu().numpy()
        instances.masks = PolygonMasks([[polygon] for polygon in corners], *size)
    return instances


def relabelled(instances: InstanceData, labels: Mapping[int, int]) -> InstanceData:
    """Return the instances whose label is in a mapping, with the label that it maps to."""
    known = torch.tensor([int(label) in labels for label in instances.labels], dtype=torch.bool)
    kept = instances[known.to(instances.labels.device)]
    kept.labels = kept.labels.new_tensor([labels[int(label)] for label in kept.labels])
    return kept
