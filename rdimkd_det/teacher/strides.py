"""Strides of a module whose maps do not divide its image, measured on a larger one too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..features import PROBE_SIZES, Level, maps_of_blank

# Images that differ by it have maps that differ by whole positions, however sides are rounded.
STEP = PROBE_SIZES[0]


@torch.no_grad()
def measured_strides(
    network: nn.Module, levels: Mapping[str, list[Level]]
) -> Mapping[str, list[Level]]:
    """Return levels with the strides that a larger image tells, if one of theirs is in doubt.

    Of an image of 259 pixels, a stride of 16 gives 17 positions, which look like one of 15.
    """
    size = next(iter(levels.values()))[0].image
    if all(size % level.stride == 0 for of_tap in levels.values() for level in of_tap):
        return levels
    try:
        maps, larger = (maps_of_blank(network, [*levels], [it]) for it in (size, size + STEP))
    except ConfigError:  # it takes one size only
        return levels
    return {
        tap: [_measured(network, *it) for it in zip(of_tap, maps[tap], larger[tap])]
        for tap, of_tap in levels.items()
    }


def _measured(network: nn.Module, level: Level, maps: Tensor, larger: Tensor) -> Level:
    number = maps.shape[2]
    added = larger.shape[2] - number
    stride = round(STEP / added) if added > 0 else level.stride
    if level.image // stride - number > 1:
        raise ConfigError(
            f'teacher: {type(network).__name__} makes {number}x{number} positions of {stride} '
            f'pixels of an image of {level.image}x{level.image}: its layers do not pad, which '
            f"shifts its maps against the student's; let them pad, or take another module."
        )
    return replace(level, stride=stride)
