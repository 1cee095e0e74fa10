"""Loads weights strictly, with an error that counts and names the keys that do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..options import listed


def load_strictly(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    checkpoint: str,
    config: str,
    who: str,
    assign: bool = False,
) -> None:
    """Load all weights of a network, or report the ones that do not fit.

    The network has the detector's parameter names, and may be a part of it; on the meta device, or
    with ``assign``, it takes over the given tensors, otherwise it copies them. ``checkpoint``,
    ``config`` and ``who`` are names for the message.

    Raises:
        ConfigError: Keys are missing, unexpected, or of another shape; the message counts and names
            them.
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
    if not _load(network, {**weights, **counters}, parts, assign):
        given = weights
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
            f'{who}: checkpoint {checkpoint} does not match {config}: {matching} of '
            f'{len(own)} keys match; {_some("missing", missing)}; '
            f'{_some("unexpected", unexpected)}; '
            f'{_some("of another shape", reshaped)}'
            f'{prefix_hint(own, given) or ". Give the checkpoint that belongs to the config"}.'
        )


def prefix_hint(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """Return the end of a message if weights match once a prefix of their keys is taken off.

    Wrappers write such keys, e.g. 'architecture.backbone...', and semi-supervised detectors both
    'student.' and 'teacher.'. Where no prefix helps, it is ''.
    """
    fitting = [
        repr(prefix)
        for prefix in prefixes_of(own, weights)
        if all(weights.get(prefix + key, own[key]).shape == own[key].shape for key in own)
    ]
    if not fitting:
        return ''
    return (
        f'; all match without the prefix {" or ".join(fitting)}: save the state dict with it taken '
        f'off the keys, and give that file'
    )


def prefixes_of(own: Iterable[str], weights: Collection[str]) -> list[str]:
    """Return the prefixes below which weights have all keys of a network; counters may lack."""
    needed = [key for key in own if not key.endswith('num_batches_tracked')]
    first = needed[0] if needed else ''
    found = [key.removesuffix(first) for key in weights if first and key.endswith(f'.{first}')]
    return [it for it in found if all(it + key in weights for key in needed)]


def _load(
    network: nn.Module, weights: Mapping[str, Tensor], parts: Collection[str], assign: bool
) -> bool:
    """Load weights, and return whether they fit.

    Only loading tells, since mmdet's RPN and semi-supervised detectors rename keys as they load.
    Keys outside of ``parts`` are ignored, and so are unexpected integers that another version of a
    module saved, e.g. position ids, since they are not learned.
    """
    own, options = network.state_dict(), {}
    if assign or any(value.is_meta for value in own.values()):
        options = {'assign': True}
        weights = {key: v.to(own[key].dtype) if key in own else v for key, v in weights.items()}
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False, **options)
    except RuntimeError:  # a shape differs
        return False
    integers = {key for key, value in weights.items() if not value.is_floating_point()}
    return not missing and not any(key.split('.')[0] in parts for key in set(unexpected) - integers)


def _some(what: str, names: Sequence[str]) -> str:
    return f'{len(names)} {what}' + (f' ({listed(names)})' if names else '')
