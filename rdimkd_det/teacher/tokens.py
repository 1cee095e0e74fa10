"""``Tokens``: makes maps (N, C, H, W) of a transformer's tokens (N, L, C) or maps (N, H, W, C)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isqrt

from torch import Tensor, nn

from ..errors import ConfigError
from ..features import PROBE_SIZES

# Of a square image of 256 pixels, more tokens than these before the patches are not prefix tokens.
MAX_PREFIX = 16


class Tokens:
    """Lays tokens out as they lie on the image, and drops the prefix (class token, registers).

    How many pixels a token stands for is read from the module where it tells, else measured once,
    on the square image of the probe.
    """

    def __init__(self) -> None:
        self.patch: int | None = None
        self._image = (0, 0)
        # (pixels per token, number of prefix tokens) by tap and index of the tensor
        self._layouts: dict[tuple[str, int], tuple[int, int] | None] = {}
        self._channels_last: set[tuple[str, int]] = set()  # taps and indices of maps

    @property
    def probe_sizes(self) -> Sequence[int]:
        """Sequence[int]: Sides of images to try: first, one that whole patches fill."""
        if self.patch is None:
            return PROBE_SIZES
        return tuple(dict.fromkeys((ceil(PROBE_SIZES[0] / self.patch) * self.patch, *PROBE_SIZES)))

    def read_patch_size(self, module: nn.Module) -> None:
        """Note the patch size that a module tells, as those of transformers, timm and DINO do."""
        places = (getattr(module, 'config', None), module, getattr(module, 'patch_embed', None))
        found = next((s for it in places if (s := getattr(it, 'patch_size', None))), None)
        sizes = {*found} if isinstance(found, Sequence) else {found}
        size = next(iter(sizes))
        self.patch = size if len(sizes) == 1 and isinstance(size, int) else None

    def note_image(self, module: nn.Module, args: tuple) -> None:
        """Note the size of the images that a module is called with; a forward pre-hook."""
        self._image = tuple(args[0].shape[2:])

    def channels_first(self, tap: str, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps as (N, C, H, W); those of timm's and torchvision's Swin are (N, H, W, C).

        A square image tells them apart.
        """
        for index, (_, one, two, three) in enumerate(it.shape for it in maps):
            if self._image[0] == self._image[1] and one == two != three:
                self._channels_last.add((tap, index))
        return [
            it.permute(0, 3, 1, 2) if (tap, index) in self._channels_last else it
            for index, it in enumerate(maps)
        ]

    def as_maps(self, tap: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps of all tensors that are tokens; [] if none is."""
        tokens = [tensor for tensor in tensors if tensor.dim() == 3]
        layouts = [self._layout(tap, n, it.shape[1]) for n, it in enumerate(tokens)]
        return [self._as_map(*pair) for pair in zip(tokens, layouts) if pair[1] is not None]

    def _as_map(self, tokens: Tensor, layout: tuple[int, int]) -> Tensor:
        patch, prefix = layout
        length = tokens.shape[1]
        for whole in (int, ceil):  # networks drop the rest of an image, or pad it
            height, width = (whole(side / patch) for side in self._image)
            if height * width + prefix == length:
                laid_out = tokens[:, prefix:].unflatten(1, (height, width))
                return laid_out.permute(0, 3, 1, 2)
        raise ConfigError(
            f'teacher: {length} tokens of an image of {self._image[0]}x{self._image[1]} pixels are '
            f'not its patches of {patch}x{patch} and {prefix} more, as on a square image; where '
            f"they are none, but queries, name a module before them: teacher_module='encoder'."
        )

    def _layout(self, tap: str, index: int, length: int) -> tuple[int, int] | None:
        """Return a tensor's layout, measured if the image is square; None if it has none."""
        known = self._layouts.get((tap, index))
        self._layouts[tap, index] = known or self._measured(length)
        return self._layouts[tap, index]

    def _measured(self, length: int) -> tuple[int, int] | None:
        side, other = self._image
        if side != other:
            return None
        grids = [(side // self.patch, self.patch)] if self.patch else []
        grid = isqrt(length)
        grids.append((grid, round(side / grid) if grid else 1))
        for grid, patch in grids:
            if 0 <= length - grid**2 <= min(MAX_PREFIX, grid) and grid > 1:
                return patch, length - grid**2
        return None
