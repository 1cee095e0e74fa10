"""CARAFE: content-aware reassembly of features (arXiv 1905.02188)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import PROVIDED, full, operator, put_gradients


def carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """Upsample (N, C, H, W) by masks (N, group_size * kernel_size^2, H * scale, W * scale)."""
    (height, width), scale = features.shape[2:], scale_factor
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
def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor, **options) -> None:
    """:func:`carafe`."""
    output.copy_(carafe(*full(features, masks), **options))


@operator
def carafe_forward(features: Tensor, masks: Tensor, *outputs: Tensor, **options) -> None:
    """:func:`carafe`; keeps the features in the first output, the only ones that backward gets.

    The last one is the result, the others are mmcv's work space.
    """
    outputs[0].copy_(features)
    carafe_naive_forward(features, masks, outputs[-1], **options)


@operator
def carafe_naive_backward(
    grad_output: Tensor, features: Tensor, masks: Tensor, *outputs: Tensor, **options
) -> None:
    """Gradients of :func:`carafe`, in the last two outputs."""
    put_gradients(partial(carafe, **options), [features, masks], grad_output, *outputs[-2:])


PROVIDED['carafe_backward'] = carafe_naive_backward  # with work space before the gradients
