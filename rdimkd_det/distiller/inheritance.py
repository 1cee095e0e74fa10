"""``inherit``: initialises modules of the student with the teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import find_module
from ..files.checkpoints import load_checkpoint_safely
from ..options import listed


def weights_to_inherit(checkpoint: str | None) -> dict[str, Tensor]:
    """Load the teacher's state dict, including the head, also for a cached teacher."""
    if checkpoint is None:
        raise ConfigError(
            "inherit takes the teacher's weights from its checkpoint, and this teacher, a module, "
            'has none; give teacher.checkpoint, or drop inherit.'
        )
    try:
        return load_checkpoint_safely(checkpoint, who='teacher')
    except ConfigError as error:
        raise ConfigError(f"inherit takes the teacher's weights: {error}") from error


def matching_weights(
    student: nn.Module, weights: Mapping[str, Tensor], paths: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Return the student's own tensors that inherit the teacher's weights, by path and key.

    A module that is missing, or a tensor that the teacher lacks or has in another shape, is an
    error; the teacher's ``weights`` include its head.
    """
    found = {}
    for path in paths:
        own = find_module(student, path, 'inherit').state_dict(prefix=f'{path}.')
        differing = [
            f'{key} {tuple(value.shape)} from {_shape(weights.get(key))}'
            for key, value in own.items()
            if key not in weights or weights[key].shape != value.shape
        ]
        if differing:
            raise ConfigError(
                f"inherit '{path}': {len(differing)} of {len(own)} tensors cannot be copied "
                f'({listed(differing)}); name the parts of it that agree.'
            )
        found[path] = own
    return found


@torch.no_grad()
def inherit_weights(
    student: nn.Module, weights: Mapping[str, Tensor], paths: Sequence[str]
) -> dict[str, int]:
    """Copy the teacher's weights into modules of the student; return the number of tensors by path.

    All are compared by :func:`matching_weights` before anything is copied.
    """
    found = matching_weights(student, weights, paths)
    for own in found.values():
        for key, value in own.items():
            value.copy_(weights[key])
    return {path: len(own) for path, own in found.items()}


def inherit_from_teacher(model: nn.Module) -> dict[str, int]:
    """Do :func:`inherit_weights` for a distilled student's ``inherit`` and its first teacher."""
    if not model.distill.inherit:
        return {}
    weights = weights_to_inherit(model.distill.per_teacher[0].teacher.checkpoint)
    return inherit_weights(model, weights, model.distill.inherit)


def _shape(tensor: Tensor | None) -> str:
    return 'nothing' if tensor is None else str(tuple(tensor.shape))
