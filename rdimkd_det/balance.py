"""``loss_weight='auto'``: how the gradients of task and distillation compare at feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from torch import Tensor

# In half precision most gradients of a mean over large maps would be 0 without it.
SCALE = 4096


def gradient_balance(task: Tensor, distance: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """How many times the task's gradient at feature maps is larger than that of a distance.

    Args:
        task (Tensor): Task loss, 0-dim.
        distance (Tensor): Distillation loss, 0-dim.
        maps (Sequence[Tensor]): Feature maps that both were computed from.

    Returns:
        Tensor: 0-dim ratio of the two gradients' norms, the same on every rank; 1 if either is 0,
        NaN if one is not finite, so that this batch tells nothing.
    """
    squares = torch.stack([squared_gradient(loss, maps) for loss in (task, distance)])
    all_reduce(squares, 'mean')
    if not squares.isfinite().all():
        return torch.full_like(squares[0], torch.nan)
    ratio = (squares[0] / squares[1]).sqrt()
    return ratio if ratio.isfinite() and ratio > 0 else torch.ones_like(ratio)


def squared_gradient(loss: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Sum of squares of a loss's gradient at feature maps, 0-dim; the graph is kept."""
    trained = [it for it in maps if it.requires_grad]  # those of a frozen stage are not
    squares = loss.new_zeros(())
    if loss.requires_grad and trained:
        grads = torch.autograd.grad(SCALE * loss, trained, retain_graph=True, allow_unused=True)
        grads = [grad.float() / SCALE for grad in grads if grad is not None]
        squares += sum(grad.square().sum() for grad in grads)
    return squares
