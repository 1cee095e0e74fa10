"""How many channels the images of a network have."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

USUAL = 3
# Sides of blank images, in pixels; some networks take one size only.
SIZES = (64, 224, 256, 384, 512)


class _Reached(Exception):
    """The first convolution is reached: it takes ``wanted`` channels, and ``given`` came."""

    def __init__(self, wanted: int, given: int) -> None:
        super().__init__()
        self.wanted, self.given = wanted, given


@torch.no_grad()
def image_channels(network: nn.Module) -> int:
    """Return the number of channels of a network's images, which its first convolution tells.

    An image of three channels runs up to that layer, since a stem may rearrange pixels before:
    YOLOX's makes 4 channels of each one. A network without convolutions counts as one for images
    of three channels.
    """
    convolutions = [it for it in network.modules() if isinstance(it, nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_pre_hook(_stop) for layer in convolutions]
    place = next(chain(network.parameters(), network.buffers()), torch.empty(0))
    extract = getattr(network, 'extract_feat', network)
    try:
        for size in SIZES if convolutions else ():
            try:
                extract(torch.zeros(1, USUAL, size, size, device=place.device, dtype=place.dtype))
            except _Reached as first:
                return _of_image(first.wanted, first.given)
            except Exception:  # a network may refuse the size, or the channels, in its own way
                continue
    finally:
        for handle in handles:
            handle.remove()
    return convolutions[0].in_channels if convolutions else USUAL


def _of_image(wanted: int, given: int) -> int:
    """Return the channels of an image, whose ``USUAL`` ones became ``given`` and not ``wanted``."""
    copies = given // USUAL
    if given == copies * USUAL and wanted % copies == 0:
        return wanted // copies
    return max(1, wanted - (given - USUAL))  # the stem adds some, e.g. coordinates


def _stop(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    raise _Reached(layer.in_channels, args[0].shape[1])
