"""Batches of images with and without labels: which parts of a student run on which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmdet.structures.mask import BitmapMasks
from mmengine.dist import get_world_size
from mmengine.structures import InstanceData
from mmengine.utils import apply_to
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import maps_of_blank
from ..losses.adapters import zero_of
from ..losses.auto_weight import differentiable_checkpoints


class Batch(NamedTuple):
    """A preprocessed batch, the labelled images first."""

    inputs: Tensor  # (N, 3, H, W)
    samples: Sequence  # data samples; a dict in MMYOLO's fast mode
    num_labelled: int

    @property
    def labelled_samples(self) -> Sequence:
        """Sequence: The data samples with labels."""
        if self.num_labelled == len(self.inputs):
            return self.samples
        return self.samples[: self.num_labelled]

    def learnt_from(self, distilling: bool) -> Batch:
        """Return all images, or while the teacher is off the labelled ones, at least one."""
        num = len(self.inputs) if distilling else max(1, self.num_labelled)
        if num == len(self.inputs) or isinstance(self.samples, Mapping):
            return self
        return Batch(self.inputs[:num], self.samples[:num], self.num_labelled)

    def shrunk(self, shrink: Callable) -> Batch:
        """Return the batch as the student gets it, by an ``ImageShrinker``."""
        return Batch(*shrink(self.inputs, self.samples), self.num_labelled)


def labelled_first(inputs: Tensor, data_samples: Sequence, labels: bool = True) -> Batch:
    """Sort a batch. A sample whose metainfo says ``labelled=False`` has no labels.

    Without ``labels`` no sample has any. An image that has none and does not say so is an error.
    """
    if data_samples is None or isinstance(data_samples, Mapping):  # no metainfo per image
        return Batch(inputs, data_samples, len(inputs) if labels else 0)
    labelled = [labels and sample.metainfo.get('labelled', True) for sample in data_samples]
    order = sorted(range(len(labelled)), key=lambda index: not labelled[index])
    if order != list(range(len(labelled))):
        inputs, data_samples = inputs[order], [data_samples[index] for index in order]
    batch = Batch(inputs, data_samples, sum(map(bool, labelled)))
    for sample in data_samples[: batch.num_labelled]:
        _check_labels(sample)
    return batch


def _check_labels(sample: object) -> None:
    instances = sample.get('gt_instances')
    if instances is None or not {'bboxes', 'labels', 'masks'} & set(instances.keys()):
        raise ConfigError(
            f'RdimKDDistiller: image {sample.metainfo.get("img_path")} has no labels and does not '
            f'say so; put LoadAnnotations into its pipeline, or take it from an UnlabelledImages '
            f'data set, whose metainfo says labelled=False.'
        )


def own_losses(student: nn.Module, loss: Callable, batch: Batch, labels: bool = True) -> dict:
    """Compute a student's own losses, of the labelled images; the others end at its features.

    ``loss`` is the student's own, and is not run on a batch without labelled images; under DDP it
    runs on one of them as if it had no object, and the losses are multiplied by 0: heads average
    their normalisers over the ranks, and every parameter needs a gradient.
    """
    inputs, samples, num = batch
    if num == len(inputs):
        return loss(inputs, samples)
    # One pass over all images: BatchNorm and SyncBN see one batch, whatever its kinds.
    feats = student.extract_feat(inputs)
    if num:
        with _given_features(student, feats, len(inputs), num):
            return loss(inputs[:num], samples[:num])
    if not labels or get_world_size() == 1:
        return {}
    with _given_features(student, feats, len(inputs), 1):
        losses = loss(inputs[:1], [_without_objects(samples[0], inputs)])
    return {
        name: zero_of([value] if isinstance(value, Tensor) else value)
        for name, value in losses.items()
        if 'loss' in name
    }


@contextmanager
def _given_features(student: nn.Module, feats: object, num_images: int, num: int) -> Iterator[None]:
    """Let a student's ``extract_feat`` return the features of the first ``num`` images."""
    name = type(student).__bases__[-1].__name__

    def of_first(maps: Tensor) -> Tensor:
        if len(maps) != num_images:
            raise ConfigError(
                f'{name}: extract_feat returns {len(maps)} maps of {num_images} images, so those '
                f'of images without labels cannot be told apart; train it without such images.'
            )
        return maps[:num]

    given, calls = apply_to(feats, lambda it: isinstance(it, Tensor), of_first), []

    def extract_feat(*args, **kwargs) -> object:
        calls.append(args)
        return given

    student.extract_feat = extract_feat
    try:
        yield
    finally:
        del student.extract_feat
    if not calls:
        raise ConfigError(
            f'{name}: its loss() does not call extract_feat, which images without labels need; '
            f'train it without such images.'
        )


def _without_objects(sample: object, inputs: Tensor) -> object:
    """Return a data sample with the same fields and no object."""
    sample = sample.new()
    instances = sample.get('gt_instances')
    if instances is not None and len(instances.keys()):
        sample.gt_instances = instances[:0]
    else:
        labels = torch.zeros(0, dtype=torch.long, device=inputs.device)
        size = sample.metainfo.get('batch_input_shape', tuple(inputs.shape[2:]))
        sample.gt_instances = InstanceData(
            bboxes=inputs.new_zeros(0, 4), labels=labels, masks=BitmapMasks([], *size)
        )
    return sample


def train_without_labels(student: nn.Module, distill: nn.Module) -> None:
    """Freeze what no distillation loss of a student depends on, e.g. its head.

    Weight decay alone would change it, and DDP would wait for its gradients. A weight 'auto', which
    needs the student's own loss, is 1.
    """
    with differentiable_checkpoints():
        outputs = maps_of_blank(student, distill.taps)
        maps = [
            outputs[tap][level.index]
            for part in distill.per_teacher
            for tap, loss in part.items()
            for (level, _), weight in zip(part.level_pairs[tap], loss.level_weights)
            if weight > 0
        ]
        trained = [it for it in student.parameters() if it.requires_grad]
        total = sum((it.sum() for it in maps), torch.zeros(()))
        gradients = (
            torch.autograd.grad(total, trained, allow_unused=True) if total.requires_grad else ()
        )
    for parameter, gradient in zip(trained, gradients):
        parameter.requires_grad_(gradient is not None)
