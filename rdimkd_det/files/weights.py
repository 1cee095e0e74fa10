"""Loading weights into a network: all that it runs, or an error that names the keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError


def load_strictly(
    network: nn.Module, weights: Mapping[str, Tensor], checkpoint: str, config: str, who: str
) -> None:
    """Load every weight that the network runs, or say which ones do not fit.

    Args:
        network (nn.Module): Network with the detector's names, or a part of it; on the meta device
            it takes the weights themselves, else copies.
        weights (Mapping[str, Tensor]): The whole detector's state dict.
        checkpoint (str): Its name, for the message.
        config (str): The network's name, for the message.
        who (str): Whose checkpoint it is, for the message.

    Raises:
        ConfigError: A key is missing, unexpected, or of another shape; counts and names them.
    """
    own = network.state_dict()
    parts = {key.split('.')[0] for key in own}
    # Counters that old PyTorch versions did not save; nothing computes with them.
    counters = {
        key: torch.zeros_like(own[key], device='cpu')
        for key in own.keys() - weights.keys()
        if key.endswith('num_batches_tracked')
        and key.replace('num_batches_tracked', 'running_mean') in weights
    }
    if not _load(network, {**weights, **counters}, parts):
        weights = {key: v for key, v in weights.items() if key.split('.')[0] in parts} | counters
        missing = sorted(own.keys() - weights.keys())
        unexpected = sorted(weights.keys() - own.keys())
        reshaped = sorted(
            f'{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}'
            for key in own.keys() & weights.keys()
            if weights[key].shape != own[key].shape
        )
        matching = len(own) - len(missing) - len(reshaped)
        raise ConfigError(
            f'{who}: checkpoint {checkpoint} is not of {config}: {matching} of {len(own)} keys '
            f'match; {_some("missing", missing)}; {_some("unexpected", unexpected)}; '
            f'{_some("of another shape", reshaped)}. Give the checkpoint that belongs to the '
            f'config.'
        )


def _load(network: nn.Module, weights: Mapping[str, Tensor], parts: Collection[str]) -> bool:
    """Load weights; whether they fit, as mmdet's detectors may rename them: RPN, semi-supervised.

    What is of no part of the network does not matter, nor integers that another version of a
    module saved, e.g. position ids: nothing learned.
    """
    own, options = network.state_dict(), {}
    if any(value.is_meta for value in own.values()):
        options = {'assign': True}
        weights = {key: v.to(own[key].dtype) if key in own else v for key, v in weights.items()}
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False, **options)
    except RuntimeError:  # one is of another shape
        return False
    integers = {key for key, value in weights.items() if not value.is_floating_point()}
    return not missing and not any(key.split('.')[0] in parts for key in set(unexpected) - integers)


def _some(what: str, names: Sequence[str], limit: int = 3) -> str:
    listed = ', '.join(names[:limit]) + (', ...' if len(names) > limit else '')
    return f'{len(names)} {what}' + (f' ({listed})' if names else '')
