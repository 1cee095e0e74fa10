"""Finds the prefix that the keys of a checkpoint have, and those of a module have not."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ConfigError
from ..files.strict_loading import prefixes_of


def without_prefix(
    module: nn.Module, weights: Mapping[str, Tensor], checkpoint: str
) -> Mapping[str, Tensor]:
    """Return the weights of a module, under its own keys, and say which prefix was in the way.

    Either all keys of the module are in the checkpoint, below one prefix (e.g. 'backbone.'); or the
    module's keys have one themselves, which the checkpoint's lack. Otherwise the weights are
    returned as they are. A module that is there twice, e.g. averaged, is an error.
    """
    own = [key for key in module.state_dict() if not key.endswith('num_batches_tracked')]
    if not own or all(key in weights for key in own):
        return weights
    prefixes = prefixes_of(own, weights)
    if len(prefixes) > 1:
        raise ConfigError(
            f'teacher: checkpoint {checkpoint} holds the module {len(prefixes)} times, below '
            f'{" and ".join(map(repr, prefixes))}; save the one that shall teach to a file.'
        )
    if prefixes:
        _say(checkpoint, f"keys below '{prefixes[0]}' are the module's")
        return {
            key.removeprefix(prefixes[0]): value
            for key, value in weights.items()
            if key.startswith(prefixes[0])
        }
    prefix = own[0][: own[0].rfind('.') + 1]
    while prefix:  # e.g. 'model.stem.', then 'model.'
        if all(key.startswith(prefix) and key.removeprefix(prefix) in weights for key in own):
            _say(checkpoint, f"the module's keys have the prefix '{prefix}', the checkpoint's not")
            return {prefix + key: value for key, value in weights.items()}
        prefix = prefix[: prefix[:-1].rfind('.') + 1]
    return weights


def _say(checkpoint: str, what: str) -> None:
    print_log(f'RdimKD: teacher checkpoint {checkpoint}: {what}', 'current')
