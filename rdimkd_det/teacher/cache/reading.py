"""``BatchReading``: the maps of a batch, read from a cache while the student runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
import torch

from .store import TeacherCache


class BatchReading:
    """Reads the maps of a batch in threads, into one buffer that moves to the device in one copy.

    A live teacher sees all images of a batch padded to one size. Beyond an image's own map, its
    response to padding is therefore filled in.

    Args:
        cache (TeacherCache): The cache.
        images (Sequence[tuple[str, tuple[int, int]]]): Key and (H, W) of each image.
        device (torch.device): Device of the maps.
        threads (Executor): Runs one job per image. Most of a job, file access and checksum,
            releases the GIL.

    Raises:
        ConfigError: An image is not in the cache, or was cached at another size.

    Attributes:
        levels (list[Tensor]): One map per level, (N, d, H, W), float32; H and W are the largest
            of the images. Filled by :meth:`finish`.
    """

    def __init__(
        self,
        cache: TeacherCache,
        images: Sequence[tuple[str, tuple[int, int]]],
        device: torch.device,
        threads: Executor,
    ) -> None:
        by_level = zip(*(cache.find(*image).map_shapes for image in images))
        shapes = [(len(images), *map(max, zip(*of_level))) for of_level in by_level]
        sizes = [math.prod(shape) for shape in shapes]
        # Pinned memory makes the copy to a GPU asynchronous.
        pinned = device.type == 'cuda'
        self._stored = torch.empty(sum(sizes), dtype=torch.float16, pin_memory=pinned)
        self._maps = torch.empty(sum(sizes), device=device)
        self.levels = [m.view(s) for m, s in zip(self._maps.split(sizes), shapes)]
        targets = [m.view(s).numpy() for m, s in zip(self._stored.split(sizes), shapes)]
        self._jobs = [
            threads.submit(_read, cache, image, of_image)
            for image, of_image in zip(images, zip(*targets))
        ]

    def finish(self) -> None:
        """Wait for the threads, and fill :attr:`levels`.

        Raises:
            DamagedShardError: A shard is damaged; the message names it.
        """
        for job in self._jobs:
            job.result()
        self._maps.copy_(self._stored.to(self._maps.device, non_blocking=True))


def _read(cache: TeacherCache, image: tuple, targets: Sequence[np.ndarray]) -> None:
    for maps, target, arrays in zip(cache.read(*image), targets, cache.arrays):
        place(maps, target, arrays.padding)


def place(maps: np.ndarray, target: np.ndarray, padding: np.ndarray) -> None:
    """Copy an image's map of one level into its batch, padded at the bottom and on the right.

    Args:
        maps (np.ndarray): Map of the image (d, h, w), float16.
        target (np.ndarray): Its place in the batch (d, H, W), float16, at least as large.
        padding (np.ndarray): The teacher's response to padding (d,).
    """
    if maps.shape != target.shape:
        target[:] = padding[:, None, None]
    target[:, : maps.shape[1], : maps.shape[2]] = maps
