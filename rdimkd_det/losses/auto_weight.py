"""``loss_weight='auto'``: the ratio of task and distillation gradients at feature maps."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor
from torch.utils import checkpoint

from ..samples import any_object
from .feature_loss import FeatureLoss

# Loss scale: without it, most gradients of a mean over large maps underflow in half precision.
SCALE = 4096
PLAUSIBLE = (1e-4, 1e4)  # the task's gradient over the distillation's
# Modules that name torch's checkpoint: its own, and two that import the function (mmengine 0.10.7,
# mmdet 3.3.0, and OneDL's).
CHECKPOINTS = {
    'torch.utils.checkpoint',
    'mmengine.runner.activation_checkpointing',
    'mmdet.models.necks.hrfpn',
}


def has_objects(data_samples: Sequence) -> bool:
    """Return whether any rank's batch has an object; without, the task's gradient is untypical.

    ``data_samples`` are the labelled ones.
    """
    found = torch.tensor(float(any_object(data_samples)))
    all_reduce(found, 'max')
    return bool(found)


def note_balance(
    tap: str,
    loss: FeatureLoss,
    distances: Mapping[str, Tensor],
    maps: Sequence[Tensor],
    task: Tensor,
) -> None:
    """Measure the balance of a batch for the weight 'auto' of a loss."""
    loss.note_balance(gradient_balance(task, sum(distances.values()), maps))
    if loss.measures_balance:
        return
    weight = float(loss.auto_weight)
    print_log(f"RdimKD: loss_weight='auto' at '{tap}' is {weight:.4g}", 'current')
    if not PLAUSIBLE[0] <= weight / loss.auto_share <= PLAUSIBLE[1]:
        print_log(
            f"RdimKD: at '{tap}' the task's gradient is {weight / loss.auto_share:.2g} times the "
            f"distillation's, so the weight 'auto' is implausible; run tools/preflight.py on the "
            f'config, or give loss_weight a number.',
            'current',
            logging.WARNING,
        )


def gradient_balance(task: Tensor, distance: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Compute the ratio of the task's gradient norm to the distillation's at feature maps.

    It is 0-dim and the same on every rank; 1 if either gradient is 0, NaN if one is not finite.
    """
    squares = torch.stack([squared_gradient(loss, maps) for loss in (task, distance)])
    all_reduce(squares, 'mean')
    if not squares.isfinite().all():
        return torch.full_like(squares[0], torch.nan)
    ratio = (squares[0] / squares[1]).sqrt()
    return ratio if ratio.isfinite() and ratio > 0 else torch.ones_like(ratio)


@contextmanager
def differentiable_checkpoints() -> Iterator[None]:
    """Make gradients through checkpointed modules that run in the block measurable.

    mmdet's modules (``with_cp=True``) and mmengine's ``activation_checkpointing`` use torch's
    default, the reentrant checkpoint, which refuses ``torch.autograd.grad``.
    """
    function = partial(checkpoint.checkpoint, use_reentrant=False)
    with ExitStack() as patches:
        for name in CHECKPOINTS & sys.modules.keys():
            patches.enter_context(mock.patch.object(sys.modules[name], 'checkpoint', function))
        yield


def squared_gradient(loss: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Compute the squared norm, 0-dim, of a loss's gradient at feature maps; keeps the graph."""
    trained = [it for it in maps if it.requires_grad]  # maps of a frozen stage carry no gradient
    squares = loss.new_zeros(())
    if loss.requires_grad and trained:
        grads = torch.autograd.grad(SCALE * loss, trained, retain_graph=True, allow_unused=True)
        grads = [grad.float() / SCALE for grad in grads if grad is not None]
        squares += sum(grad.square().sum() for grad in grads)
    return squares
