"""CARAFE: content-aware reassembly of features (arXiv 1905.02188)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import full, gradients, operator


def carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale: int
) -> Tensor:
    """Upsample (N, C, H, W) by masks (N, group_size * kernel_size^2, H * scale, W * scale)."""
    height, width = features.shape[2:]
    reach = kernel_size // 2
    padded = F.pad(features, [reach] * 4).unflatten(1, (group_size, -1))
    # (N, groups, 1, taps, H, scale, W, scale)
    masks = masks.unflatten(1, (group_size, 1, -1))
    masks = masks.unflatten(5, (width, scale)).unflatten(4, (height, scale))
    output = None
    for tap in range(kernel_size**2):
        top, left = divmod(tap, kernel_size)
        patch = padded[..., top : top + height, None, left : left + width, None]
        if output is None:
            output = patch * masks[:, :, :, tap]
        else:
            output = torch.addcmul(output, patch, masks[:, :, :, tap])
    return output.flatten(5, 6).flatten(3, 4).flatten(1, 2)


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """:func:`carafe`; keeps the features in rfeatures, the only ones that backward gets."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@operator
def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe`; the arguments that start with r are mmcv's work space."""
    options = (kernel_size, group_size, scale_factor)
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, *options)


@operator
def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """:func:`carafe`."""
    output.copy_(carafe(*full(features, masks), kernel_size, group_size, scale_factor))


@operator
def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of :func:`carafe`."""
    upsample = partial(carafe, kernel_size=kernel_size, group_size=group_size, scale=scale_factor)
    of_features, of_masks = gradients(upsample, [features, masks], grad_output)
    grad_input.copy_(of_features)
    grad_masks.copy_(of_masks)


OPERATORS = (carafe_forward, carafe_backward, carafe_naive_forward, carafe_naive_backward)
