"""A look at the teacher's features before training, for the projections that learn from them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.utils import track_iter_progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .distillation import Distillation


class ChannelCovariance:
    """Mean and covariance of channels, accumulated in float64 over batches and ranks.

    Args:
        num_channels (int): Channels C.
        device (torch.device): Where to accumulate.
    """

    def __init__(self, num_channels: int, device: torch.device) -> None:
        options = {'dtype': torch.float64, 'device': device}
        self.count = torch.zeros((), **options)
        self.sum = torch.zeros(num_channels, **options)
        self.square = torch.zeros(num_channels, num_channels, **options)

    def update(self, feats: Tensor) -> None:
        """Add a feature map.

        Args:
            feats (Tensor): Map (N, C, H, W).
        """
        positions = feats.detach().double().transpose(0, 1).flatten(1)  # (C, N * H * W)
        self.count += positions.shape[1]
        self.sum += positions.sum(1)
        self.square += positions @ positions.t()

    def compute(self) -> Tensor:
        """The covariance (C, C) over all batches of all ranks, the same on each."""
        for total in (self.count, self.sum, self.square):
            all_reduce(total, 'sum')
        mean = self.sum / self.count
        return self.square / self.count - torch.outer(mean, mean)


@torch.no_grad()
def teacher_covariances(
    distill: Distillation, preprocessor: nn.Module, batches: Iterable
) -> dict[str, list[Tensor]]:
    """Channel covariance of the teacher's maps at every tap and level, in one pass.

    Args:
        distill (Distillation): The teacher and its taps.
        preprocessor (nn.Module): The student's data preprocessor.
        batches (Iterable): Batches as the training data loader gives them.

    Returns:
        dict[str, list[Tensor]]: Tap to a covariance (C, C), float64, for each level.
    """
    sums: dict[str, list[ChannelCovariance]] = {}
    for batch in batches:
        data = preprocessor(batch, True)
        for tap, levels in distill.teacher_feats(data['inputs'], data['data_samples']).items():
            if tap not in sums:
                sums[tap] = [ChannelCovariance(maps.shape[1], maps.device) for maps in levels]
            for covariance, maps in zip(sums[tap], levels):
                covariance.update(maps)
    return {tap: [level.compute() for level in levels] for tap, levels in sums.items()}


def fit_projections(distill: Distillation, preprocessor: nn.Module, batches: Iterable) -> None:
    """Fit every projection of every tap in one pass over the batches.

    Args:
        distill (Distillation): Its projections are fitted in place.
        preprocessor (nn.Module): The student's data preprocessor.
        batches (Iterable): Batches as the training data loader gives them.
    """
    covariances = teacher_covariances(distill, preprocessor, batches)
    for tap, loss in distill.items():
        for projection, covariance in zip(loss.projections, covariances[tap]):
            projection.fit(covariance)


def calibration_batches(dataloader: DataLoader, num_images: int, seed: int) -> Iterator:
    """Batches of a fixed random choice of training images, split over the ranks.

    The data loader itself is not touched, so that training sees the batches it would see without.

    Args:
        dataloader (DataLoader): Training data loader.
        num_images (int): Images on all ranks together; rounded up to full batches.
        seed (int): Seed of the choice.

    Yields:
        object: Batches of this rank, with a progress bar on the first rank's terminal.
    """
    batch_size = dataloader.batch_size or dataloader.batch_sampler.batch_size
    # One image counts once, in however many processes: the basis does not depend on them.
    num_batches = -(-min(num_images, len(dataloader.dataset)) // (batch_size * get_world_size()))
    loader = DataLoader(
        dataloader.dataset,
        batch_size=batch_size,
        sampler=DefaultSampler(dataloader.dataset, shuffle=True, seed=seed),
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        worker_init_fn=dataloader.worker_init_fn,
        multiprocessing_context=dataloader.multiprocessing_context,
    )
    batches = (batch for _, batch in zip(range(num_batches), loader))
    if is_main_process() and sys.stdout.isatty():
        batches = track_iter_progress((batches, num_batches))
    yield from batches


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's random states as they were found."""
    python, numpy, on_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(on_cpu)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
