"""Finds the input that a teacher was trained on, by its BatchNorm statistics and its own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from statistics import fmean, stdev

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..bridge import InputBridge
from ..distiller.distillation import Distillation
from ..progress import with_progress
from ..samples import one_per_image
from .input_formats import InputFormat, candidates
from .measurements import training_input
from .whole_teacher import at_size_of, relabelled, with_masks

# One input is clearly worse if its divergence exceeds MUCH_FARTHER times the other's, plus LITTLE.
MUCH_FARTHER, LITTLE = 1.5, 0.05
# Largest divergence of an input that a teacher may have been trained on: 0.01 to 0.04 on images of
# its training, 0.15 to 0.41 with COCO's weights on other photographs.
NEAR = 0.3
# One input is clearly better if its loss is below this share of the other's. The share is close to
# 1, since swapped channels raise the loss on natural images only a little.
LOWER_LOSS = 0.9
# A difference is clear if it is this many times its standard error over the images.
CLEAR = 3.0
# Images below which there is no standard error.
FEWEST = 3
# Largest weight that the values before training may have in a layer's running statistics.
REMEMBERED = 0.05


@dataclass
class InputScore:
    """How well an input fits a teacher; lower is better.

    The errors are standard errors, over the images, of the difference to the configured input.
    """

    name: str
    format: InputFormat
    divergence: float | None  # from the BatchNorm statistics, if there are any
    loss: float | None  # the teacher's own, on labelled images
    divergence_error: float = 0.0
    loss_error: float = 0.0
    unrelated_loss: float = inf  # with the labels of another image; measured where it matters


def compare_inputs(
    part: Distillation,
    student_preprocessor: nn.Module,
    batches: Sequence[dict],
    detector: nn.Module | None = None,
    labels: Mapping[int, int] | None = None,
) -> list[InputScore]:
    """Score the configured input of a teacher, first, and others that it may have been trained on.

    ``batches`` are as the training data loader gives them. With the whole teacher (``detector``)
    and ``labels``, the data's labels to the teacher's, its own loss is measured as well, where an
    image has objects of these.
    """
    own = part.teacher.build_preprocessor()
    data = [training_input(student_preprocessor, batch) for batch in batches]
    for batch in data:
        batch['data_samples'] = one_per_image(batch['data_samples'], batch['inputs'])
    detector = detector if labels else None
    network = detector or part.teacher.load_plain().to(data[0]['inputs'].device)
    bridges = {
        name: (format, InputBridge(student_preprocessor, format.build(like=own)))
        for name, format in candidates(InputFormat.of(own, part.image_channels)).items()
    }
    scores, first = [], None
    for name, (format, bridge) in with_progress(list(bridges.items()), "the teacher's input"):
        seen = divergences, losses = _observe(network, bridge, data, labels if detector else None)
        first = first or seen
        score = InputScore(name, format, divergences[0], _mean(losses))
        score.divergence_error = _jackknife(first[0][1:], divergences[1:])
        score.loss_error = _standard_error(first[1], losses)
        scores.append(score)
    for score in scores[1:]:
        if _lower_loss(score, scores[0]):  # rare, so that the time does not matter
            _, losses = _observe(network, bridges[score.name][1], _with_other_labels(data), labels)
            score.unrelated_loss = _mean(losses)
    return scores


def _observe(
    network: nn.Module, bridge: InputBridge, data: Sequence[dict], labels: Mapping | None
) -> tuple[list[float | None], list[float]]:
    """Run images one by one through a feature extractor, or with labels through a detector.

    Returns the divergence of all images, then those without each of them; and the losses.
    """
    layers = batch_norms(network)
    losses: list[float | None] = []
    # Of each image, by layer: number of positions, sums and sums of squares of the channels.
    sums: list[dict[nn.Module, tuple]] = []

    def add(layer: nn.Module, args: tuple) -> None:
        positions = args[0].detach().double().transpose(0, 1).flatten(1)
        found = positions.shape[1], positions.sum(1), positions.square().sum(1)
        earlier = sums[-1].get(layer, (0, 0.0, 0.0))
        sums[-1][layer] = tuple(a + b for a, b in zip(earlier, found))

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(add))
        for batch in data:
            inputs = bridge(batch['inputs'], batch['data_samples'])
            for image, sample in zip(inputs, batch['data_samples']):
                sums.append({})
                losses.append(_run(network, image[None], sample, labels))
    parts = [sums, *(sums[:number] + sums[number + 1 :] for number in range(len(sums)))]
    divergences = [divergence(_moments(layers, part)) for part in parts]
    return divergences, [loss for loss in losses if loss is not None]


def _moments(
    layers: Sequence[_BatchNorm], sums: Sequence[Mapping]
) -> list[tuple[_BatchNorm, tuple[Tensor, Tensor]]]:
    """Return the layers that ran, each with the mean (C,) and biased variance (C,) of its input."""
    moments = []
    for layer in layers:
        of_images = [it[layer] for it in sums if layer in it]
        if of_images:
            count, total, square = map(sum, zip(*of_images))
            mean = total / count
            moments.append((layer, (mean, (square / count - mean.square()).clamp(min=0))))
    return moments


@torch.no_grad()
def _run(
    network: nn.Module, inputs: Tensor, sample: DetDataSample, labels: Mapping[int, int] | None
) -> float | None:
    """Run one image through a network, and return its loss, if it has objects of these labels."""
    if labels is None:
        network(inputs)
        return None
    (sample,) = at_size_of(inputs, [sample])
    known = relabelled(sample.gt_instances, labels)
    sample.gt_instances = with_masks(known, tuple(inputs.shape[2:]))
    if not len(known):
        network.extract_feat(inputs)
        return None
    torch.manual_seed(0)  # two-stage detectors sample proposals
    return float(network.parse_losses(network.loss(inputs, [sample]))[0])


def _with_other_labels(data: Sequence[dict]) -> list[dict]:
    """Give each image the objects of the next one."""
    data = [{**batch, 'data_samples': deepcopy(batch['data_samples'])} for batch in data]
    samples = [sample for batch in data for sample in batch['data_samples']]
    instances = [sample.gt_instances for sample in samples]
    for sample, others in zip(samples, [*instances[1:], instances[0]]):
        sample.gt_instances = others
    return data


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _standard_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard error of the mean difference of paired values; inf if they are few."""
    differences = [a - b for a, b in zip(one, other)]
    if len(differences) < FEWEST:
        return inf
    return stdev(differences) / len(differences) ** 0.5


def _jackknife(one: Sequence[float | None], other: Sequence[float | None]) -> float:
    """Return the standard error of a difference from its values without each of the images."""
    if None in (*one, *other) or len(one) < FEWEST:
        return inf
    return (len(one) - 1) * _standard_error(one, other)


def better_input(scores: Sequence[InputScore]) -> InputScore | None:
    """Return the best input that is clearly better than the configured one (the first), or None."""
    configured, *others = scores
    better = [other for other in others if _fits_better(other, configured)]
    measure = 'divergence' if configured.loss is None else 'loss'
    return min(better, key=lambda score: getattr(score, measure), default=None)


def _fits_better(other: InputScore, configured: InputScore) -> bool:
    """Decide by the statistics where they differ clearly, and else by the loss.

    Where the configured input is the nearer one, the loss does not overrule it: on a few augmented
    images it may be lower for any. Nor does a loss count that is as low with wrong labels, as that
    of a teacher is which has hardly been trained or knows other classes.
    """
    if configured.divergence is not None:
        difference = configured.divergence - other.divergence
        clear = abs(difference) > CLEAR * other.divergence_error
        near, far = sorted((other.divergence, configured.divergence))
        if other.divergence > NEAR:  # it was not trained on this one either
            return False
        if clear and far > MUCH_FARTHER * near + LITTLE:
            return difference > 0
        if clear and difference < 0 and far > MUCH_FARTHER * near:
            return False
    return _lower_loss(other, configured) and other.loss < LOWER_LOSS * other.unrelated_loss


def _lower_loss(other: InputScore, configured: InputScore) -> bool:
    if configured.loss is None:
        return False
    clear = configured.loss - other.loss > CLEAR * other.loss_error
    return clear and other.loss < LOWER_LOSS * configured.loss


def divergence(
    statistics: Sequence[tuple[_BatchNorm, tuple[Tensor, Tensor]]],
) -> float | None:
    """Return the distance of observed activations from BatchNorm's running statistics; 0 is none.

    Per channel, this is the symmetric Kullback-Leibler divergence D of two Gaussians; log(1 + D) is
    averaged over channels, so that no single channel dominates. The first layers, nearest to the
    input and least dependent on image content, weigh most. ``statistics`` has the layers from the
    input on, each with the mean (C,) and the variance (C,) of its input; without any, it is None.
    """
    total = weights = 0.0
    for index, (layer, (mean, variance)) in enumerate(statistics):
        expected = layer.running_var.double()
        # Avoid a division by 0 for channels that never vary.
        floor = layer.eps + 1e-3 * expected.mean()
        expected, variance = expected + floor, variance + floor
        shift = (mean - layer.running_mean.double()).square()
        symmetric = ((variance + shift) / expected + (expected + shift) / variance) / 2 - 1
        weight = 1 / (1 + index)
        total += weight * float(symmetric.clamp(min=0).log1p().mean())
        weights += weight
    return total / weights if weights else None


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of backbone and neck that hold statistics from training.

    Layers with mean 0 and variance 1 are left out: converted caffe and Detectron2 weights have
    their statistics folded into the affine parameters. So are those that have seen a few batches
    only, whose statistics still are the values that a layer begins with.
    """
    return [it for it in _batch_norms(network) if not _has_seen_little(it)]


def hardly_trained(network: nn.Module) -> bool:
    """Return whether most BatchNorm layers with statistics have seen only a few batches."""
    layers = _batch_norms(network)
    return 2 * sum(map(_has_seen_little, layers)) > len(layers)


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [
        layer
        for part in (network.backbone, getattr(network, 'neck', None) or nn.Identity())
        for layer in part.modules()
        if isinstance(layer, _BatchNorm)
        and layer.track_running_stats
        and bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())
    ]


def _has_seen_little(layer: _BatchNorm) -> bool:
    """Return whether a layer's statistics began with 0 and 1 a few batches ago."""
    batches = int(layer.num_batches_tracked)  # 0 in converted weights
    if layer.momentum is None or not batches:
        return False
    return (1 - layer.momentum) ** batches > REMEMBERED
