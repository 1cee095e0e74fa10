"""Reads the maps of a batch from a cache while the student runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import torch
from torch import Tensor

from .store import TeacherCache


def start_reading(
    cache: TeacherCache,
    images: Sequence[tuple[str, tuple[int, int]]],
    device: torch.device,
    threads: Executor,
) -> tuple[list[Tensor], Callable[[], None]]:
    """Read images, by key and (H, W), into one buffer that moves to the device in one copy.

    Returns a map per level, (N, d, H, W), float32, as large as the largest image needs; and what
    waits for the threads, and fills them. A live teacher sees all images of a batch padded to one
    size; beyond an image's own map, its response to padding is therefore filled in.
    """
    by_level = zip(*(cache.find(*image).map_shapes for image in images))
    shapes = [(len(images), *map(max, zip(*of_level))) for of_level in by_level]
    sizes = [math.prod(shape) for shape in shapes]
    # Pinned memory makes the copy to a GPU asynchronous.
    stored = torch.empty(sum(sizes), dtype=torch.float16, pin_memory=device.type == 'cuda')
    maps = torch.empty(sum(sizes), device=device)
    targets = [m.view(s).numpy() for m, s in zip(stored.split(sizes), shapes)]
    # Most of a job, file access and checksum, releases the GIL.
    jobs = [
        threads.submit(_read, cache, image, of_image)
        for image, of_image in zip(images, zip(*targets))
    ]

    def finish() -> None:
        for job in jobs:
            job.result()
        maps.copy_(stored.to(device, non_blocking=True))

    return [m.view(s) for m, s in zip(maps.split(sizes), shapes)], finish


def _read(cache: TeacherCache, image: tuple, targets: Sequence[np.ndarray]) -> None:
    for maps, target, tensors in zip(cache.read(*image), targets, cache.tensors):
        place(maps, target, tensors.padding.numpy())


def place(maps: np.ndarray, target: np.ndarray, padding: np.ndarray) -> None:
    """Copy a map (d, h, w) into its place in a batch (d, H, W), and padding (d,) around it."""
    if maps.shape != target.shape:
        target[:] = padding[:, None, None]
    target[:, : maps.shape[1], : maps.shape[2]] = maps
