"""Statistics of the teacher's features before training, on which projections are fitted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_world_size, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .distillation import Distillation
from .progress import watched


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
    parts: Sequence[Distillation], preprocessor: nn.Module, batches: Iterable
) -> list[dict[str, list[Tensor]]]:
    """Channel covariance of teachers' maps at every tap and level, in one pass.

    Args:
        parts (Sequence[Distillation]): One per teacher.
        preprocessor (nn.Module): The student's data preprocessor.
        batches (Iterable): Batches as the training data loader gives them.

    Returns:
        list[dict[str, list[Tensor]]]: For each teacher, tap to a covariance (C, C), float64, for
        each level.
    """
    sums: list[dict[str, list[ChannelCovariance]]] = [{} for _ in parts]
    for batch in batches:
        data = preprocessor(batch, True)
        for part, of_part in zip(parts, sums):
            feats = part.teacher_feats(data['inputs'], data['data_samples'])
            for tap, levels in feats.items():
                if tap not in of_part:
                    channels = [maps.shape[1] for maps in levels]
                    of_part[tap] = [ChannelCovariance(c, levels[0].device) for c in channels]
                for covariance, maps in zip(of_part[tap], levels):
                    covariance.update(maps)
    return [
        {tap: [level.compute() for level in levels] for tap, levels in of_part.items()}
        for of_part in sums
    ]


def fit_projections(model: nn.Module, batches: Iterable) -> None:
    """Fit the projections of a distilled student, in one pass over the batches.

    It skips a teacher whose losses all have weight 0, and a cached one, which brings its bases.

    ``DistillHook`` calls it before training; without a Runner, call it yourself.

    Args:
        model (nn.Module): A distilled student; its projections are fitted in place.
        batches (Iterable): Batches as the training data loader gives them.
    """
    parts = [part for part in model.distill.parts if part.wanted]
    parts = [part for part in parts if not part.teacher.projected]
    all_covariances = teacher_covariances(parts, model.data_preprocessor, batches)
    for part, covariances in zip(parts, all_covariances):
        for tap, loss in part.items():
            for projection, covariance in zip(loss.projections, covariances[tap]):
                projection.fit(covariance)


def default_calibration_images(num_images: int) -> int:
    """How many images of a data set to fit on, unless the user says.

    An image costs about the teacher's forward pass, 0.18 of a distilled step: a tenth of the data
    set is 1.8 percent of an epoch. Below 32 images the coarsest levels have too few positions for a
    covariance; 32 are more than 3 percent of an epoch where the data set has fewer than 192 images,
    and an epoch is soon over.

    Args:
        num_images (int): Size of the data set.
    """
    return min(256, max(32, num_images // 10))


def batch_size(loader: DataLoader) -> int:
    """Images in a full batch of a loader, also of one with a batch sampler of its own."""
    return loader.batch_size or loader.batch_sampler.batch_size


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
    size = batch_size(dataloader)
    # One image counts once, in however many processes: the basis does not depend on them.
    num_batches = -(-min(num_images, len(dataloader.dataset)) // (size * get_world_size()))
    loader = DataLoader(
        dataloader.dataset,
        batch_size=size,
        sampler=DefaultSampler(dataloader.dataset, shuffle=True, seed=seed),
        num_workers=dataloader.num_workers,
        collate_fn=dataloader.collate_fn,
        worker_init_fn=dataloader.worker_init_fn,
        multiprocessing_context=dataloader.multiprocessing_context,
    )
    # Its workers are started here, before the bar has a thread, whose locks they would inherit.
    batches = (batch for _, batch in zip(range(num_batches), loader))
    if is_main_process():
        batches = watched(batches, 'training images', total=num_batches)
    yield from batches
