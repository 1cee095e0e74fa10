"""Focal loss (arXiv 1708.02002), sigmoid and softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import full, operator

# mmcv takes the logarithm of no smaller probability.
SMALLEST = torch.finfo(torch.float32).tiny


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss (N, C) of logits (N, C) and labels (N,); a label of C or more is background."""
    p, positive = _probabilities(input, target)
    q = 1 - p
    of_positive = -alpha * q**gamma * p.clamp(min=SMALLEST).log()
    of_negative = (alpha - 1) * p**gamma * q.clamp(min=SMALLEST).log()
    output.copy_(_weighted(torch.where(positive, of_positive, of_negative), target, weight))


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of :func:`sigmoid_focal_loss_forward` with respect to the logits."""
    p, positive = _probabilities(input, target)
    q = 1 - p
    of_positive = -alpha * q**gamma * (q - gamma * p * p.clamp(min=SMALLEST).log())
    of_negative = (alpha - 1) * p**gamma * (gamma * q * q.clamp(min=SMALLEST).log() - p)
    grad_input.copy_(_weighted(torch.where(positive, of_positive, of_negative), target, weight))


def _probabilities(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities (N, C), and which of them belong to the label."""
    classes = torch.arange(input.shape[1], device=input.device)
    return full(input)[0].sigmoid(), target[:, None] == classes


@operator
def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss (N,) of probabilities (N, C) and labels (N,); 0 for a negative label."""
    p = _probability_of_label(input, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=SMALLEST).log()
    output.copy_(_weighted(torch.where(target >= 0, loss, 0), target, weight))


@operator
def softmax_focal_loss_backward(*tensors: Tensor, gamma: float, alpha: float) -> None:
    """Gradient of :func:`softmax_focal_loss_forward` with respect to the logits."""
    input, target, weight, _buff, grad_input = tensors
    p = _probability_of_label(input, target)
    q = 1 - p
    slope = alpha * (gamma * q ** (gamma - 1) * p * p.clamp(min=SMALLEST).log() - q**gamma)
    slope = _weighted(torch.where(target >= 0, slope, 0), target, weight)
    classes = torch.arange(input.shape[1], device=input.device)
    own = (target[:, None] == classes).to(slope.dtype)
    grad_input.copy_(slope[:, None] * (own - full(input)[0]))


def _probability_of_label(probabilities: Tensor, target: Tensor) -> Tensor:
    return full(probabilities)[0].gather(1, target.clamp(min=0)[:, None])[:, 0]


def _weighted(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Multiply values (N, ...) by the weight (C,), if any, of each label."""
    if not weight.numel():
        return values
    weights = weight[target.clamp(min=0)].to(values.dtype)
    return values * weights.view(-1, *[1] * (values.dim() - 1))
