"""Finds the input that a teacher was trained on, by its BatchNorm statistics and its own loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..bridge import InputBridge
from ..distiller.distillation import Distillation
from ..progress import with_progress
from .input_formats import InputFormat, candidates
from .measurements import training_input
from .whole_teacher import at_size_of, relabelled, with_masks

# One input is clearly worse if its divergence exceeds MUCH_FARTHER times the other's, plus LITTLE.
MUCH_FARTHER, LITTLE = 1.5, 0.05
# One input is clearly better if its loss is below this share of the other's. The share is close to
# 1, since swapped channels raise the loss on natural images only a little.
LOWER_LOSS = 0.9


class ChannelMoments:
    """Mean and variance of channels over batches, accumulated in float64."""

    def __init__(self) -> None:
        self.count, self.sum, self.square = 0, 0.0, 0.0

    def update(self, feats: Tensor) -> None:
        """Add a map (N, C, ...)."""
        positions = feats.detach().double().transpose(0, 1).flatten(1)  # (C, positions)
        self.count += positions.shape[1]
        self.sum = self.sum + positions.sum(1)
        self.square = self.square + positions.square().sum(1)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean (C,) and biased variance (C,)."""
        mean = self.sum / self.count
        return mean, (self.square / self.count - mean.square()).clamp(min=0)


@dataclass
class InputScore:
    """How well an input fits a teacher; lower is better."""

    name: str
    format: InputFormat
    divergence: float | None  # from the BatchNorm statistics, if there are any
    loss: float | None  # the teacher's own, on labelled images


def compare_inputs(
    part: Distillation,
    student_preprocessor: nn.Module,
    batches: Sequence[dict],
    detector: nn.Module | None = None,
    labels: Mapping[int, int] | None = None,
) -> list[InputScore]:
    """Score the configured input of a teacher, first, and others that it may have been trained on.

    ``batches`` are as the training data loader gives them. With the whole teacher (``detector``)
    and ``labels``, the data's labels to the teacher's, its own loss is measured as well.
    """
    own = part.teacher.build_preprocessor()
    data = [training_input(student_preprocessor, batch) for batch in batches]
    detector = detector if labels else None
    network = detector or part.teacher.load_plain().to(data[0]['inputs'].device)
    scores = []
    formats = list(candidates(InputFormat.of(own, part.image_channels)).items())
    for name, format in with_progress(formats, "the teacher's input"):
        bridge = InputBridge(student_preprocessor, format.build(like=own))
        with observed_moments(network) as moments:
            losses = [_run(network, bridge, batch, labels if detector else None) for batch in data]
        statistics = [(layer, each.compute()) for layer, each in moments if each.count]
        loss = None if None in losses else sum(losses) / len(losses)
        scores.append(InputScore(name, format, divergence(statistics), loss))
    return scores


@torch.no_grad()
def _run(
    network: nn.Module, bridge: InputBridge, batch: dict, labels: Mapping[int, int] | None
) -> float | None:
    """Run a whole detector and return its loss, or without labels run a feature extractor."""
    inputs = bridge(batch['inputs'], batch['data_samples'])
    if labels is None:
        network(inputs)
        return None
    samples = at_size_of(inputs, batch['data_samples'])
    for sample in samples:
        known = relabelled(sample.gt_instances, labels)
        sample.gt_instances = with_masks(known, tuple(inputs.shape[2:]))
    torch.manual_seed(0)  # two-stage detectors sample proposals
    return float(network.parse_losses(network.loss(inputs, samples))[0])


def better_input(scores: Sequence[InputScore]) -> InputScore | None:
    """Return the best input that is clearly better than the configured one (the first), or None."""
    configured, *others = scores
    better = [other for other in others if _fits_better(other, configured)]
    measure = 'divergence' if configured.loss is None else 'loss'
    return min(better, key=lambda score: getattr(score, measure), default=None)


def _fits_better(other: InputScore, configured: InputScore) -> bool:
    if configured.divergence is not None:
        near, far = sorted((other.divergence, configured.divergence))
        if far > MUCH_FARTHER * near + LITTLE:
            return other.divergence == near
    return configured.loss is not None and other.loss < LOWER_LOSS * configured.loss


@contextmanager
def observed_moments(network: nn.Module) -> Iterator[list[tuple[_BatchNorm, ChannelMoments]]]:
    """Accumulate moments of the inputs of a network's BatchNorm layers while the block runs."""
    moments = [(layer, ChannelMoments()) for layer in batch_norms(network)]
    handles = [
        layer.register_forward_pre_hook(lambda _, args, own=own: own.update(args[0]))
        for layer, own in moments
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


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
    their statistics folded into the affine parameters.
    """
    return [
        layer
        for part in (network.backbone, getattr(network, 'neck', None) or nn.Identity())
        for layer in part.modules()
        if isinstance(layer, _BatchNorm)
        and layer.track_running_stats
        and bool((layer.running_mean != 0).any() or (layer.running_var != 1).any())
    ]
