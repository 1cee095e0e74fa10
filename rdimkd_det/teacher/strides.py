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
# Of maps of one image, relative to their largest value: rounding is below, randomness above.
LARGEST_CHANGE = 1e-2


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
    if all(a.shape == b.shape for tap in levels for a, b in zip(maps[tap], larger[tap])):
        raise ConfigError(
            f'teacher: {type(network).__name__} makes maps of one size of images of {size} and of '
            f'{size + STEP} pixels: it resizes images itself, which detectors of torchvision do; '
            f'take the module behind that, e.g. its backbone alone.'
        )
    return {
        tap: [_measured(network, *it) for it in zip(of_tap, maps[tap], larger[tap])]
        for tap, of_tap in levels.items()
    }


@torch.no_grad()
def check_alike(network: nn.Module, levels: Mapping[str, list[Level]]) -> None:
    """Check that a network makes the same maps of an image each time."""
    size = next(iter(levels.values()))[0].image
    once, again = (maps_of_blank(network, [*levels], [size]) for _ in range(2))
    for tap in levels:
        for one, other in zip(once[tap], again[tap]):
            if (one - other).abs().max() > LARGEST_CHANGE * one.abs().max():
                raise ConfigError(
                    f'teacher: {type(network).__name__} makes other maps of the same image each '
                    f'time: it draws random numbers in eval mode, as masked autoencoders do and '
                    f'dropout without training=self.training; let it draw none.'
                )


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
