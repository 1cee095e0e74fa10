"""Calibration: fits the projections to the teacher's feature maps before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_reduce, get_world_size, is_main_process
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..distiller import distilled_student
from ..distiller.distillation import Distillation
from ..losses.padding import positions_in_images, select_positions
from ..progress import with_progress
from ..samples import image_sizes


class ChannelCovariance:
    """Covariance (C, C) of channels, accumulated in float64 over batches and ranks."""

    def __init__(self, num_channels: int, device: torch.device) -> None:
        # Apple's GPUs have no float64.
        options = {'dtype': torch.float64, 'device': 'cpu' if device.type == 'mps' else device}
        self.count = torch.zeros((), **options)
        self.sum = torch.zeros(num_channels, **options)
        self.square = torch.zeros(num_channels, num_channels, **options)

    def update(self, feats: Tensor, positions: Tensor | None = None) -> None:
        """Add a feature map (N, C, H, W), or some of its positions."""
        vectors = select_positions(feats.detach().flatten(2), positions)  # (N, C, L)
        vectors = vectors.transpose(0, 1).flatten(1).to(self.sum.device).double()
        self.count += vectors.shape[1]
        self.sum += vectors.sum(1)
        self.square += vectors @ vectors.t()

    def compute(self) -> Tensor:
        """Return the covariance (C, C) over all batches of all ranks, the same on every rank."""
        for total in (self.count, self.sum, self.square):
            all_reduce(total, 'sum')
        mean = self.sum / self.count
        return self.square / self.count - torch.outer(mean, mean)


@torch.no_grad()
def teacher_covariances(
    parts: Sequence[Distillation], preprocessor: nn.Module, batches: Iterable
) -> list[dict[str, list[Tensor]]]:
    """Compute the channel covariances of the teachers' maps at all taps and levels, in one pass.

    Per teacher, they are a dict from tap to the float64 covariance (C, C) of each level.
    """
    sums: list[dict[str, list[ChannelCovariance]]] = [{} for _ in parts]
    for batch in batches:
        data = preprocessor(batch, True)
        sizes = image_sizes(data['data_samples'], parts[0].pipeline_scale)
        for part, of_part in zip(parts, sums):
            feats = part.teacher_feats(data['inputs'], data['data_samples'])
            for tap, levels in feats.items():
                if tap not in of_part:
                    of_part[tap] = [ChannelCovariance(it.shape[1], it.device) for it in levels]
                for covariance, maps, (_, level) in zip(
                    of_part[tap], levels, part.level_pairs[tap]
                ):
                    covariance.update(maps, positions_in_images(sizes, maps, level.stride))
    return [
        {tap: [level.compute() for level in levels] for tap, levels in of_part.items()}
        for of_part in sums
    ]


def fit_projections(model: nn.Module, batches: Iterable) -> None:
    """Fit the projections of a distilled student, in one pass over the batches.

    ``DistillHook`` calls this before training; without a Runner, call it yourself. Teachers whose
    losses all have weight 0 or no projection are skipped, as are cached teachers, which bring
    their own bases.

    Args:
        model (nn.Module): A distilled student; its projections are fitted in place.
        batches (Iterable): Batches from the training data loader.

    Raises:
        ConfigError: The model is not distilled, or its teacher's config, module or cache cannot be
            read.
    """
    model = distilled_student(model)
    parts = [
        part for part in model.distill.per_teacher if part.has_weight and not part.teacher.projected
    ]
    parts = [part for part in parts if any(loss.projections for _, loss in part.items())]
    if not parts:
        return
    all_covariances = teacher_covariances(parts, model.data_preprocessor, batches)
    for part, covariances in zip(parts, all_covariances):
        for tap, loss in part.items():
            for projection, covariance in zip(loss.projections, covariances[tap]):
                projection.fit(covariance)


def default_calibration_images(num_images: int) -> int:
    """Return the default number of images to fit the projections on.

    Fitting costs about one teacher forward pass per image, 0.18 of a distilled step, so a tenth of
    the data set takes 1.8 percent of an epoch. Below 32 images the coarsest levels have too few
    positions for a covariance; 32 images take more than 3 percent of an epoch only where the data
    set has fewer than 192 images and an epoch is short.
    """
    return min(256, max(32, num_images // 10))


def batch_size(loader: DataLoader) -> int:
    """Return the number of images in a full batch, also for a loader with a batch sampler."""
    return loader.batch_size or loader.batch_sampler.batch_size


def loader_of(loader: DataLoader, batches: Sequence[Sequence[int]]) -> DataLoader:
    """Return a loader of chosen batches, in other respects like a training data loader."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


def calibration_batches(dataloader: DataLoader, num_images: int, seed: int) -> Iterator:
    """Yield batches of a fixed random sample of the training images, split over the ranks.

    The training data loader itself is not used, so training sees the same batches as without
    calibration. Rank 0 shows a progress bar on a terminal.
    """
    size = batch_size(dataloader)
    # `num_images` counts over all ranks: up to rounding, the basis is the same for any world size.
    num_batches = -(-min(num_images, len(dataloader.dataset)) // (size * get_world_size()))
    order = list(DefaultSampler(dataloader.dataset, shuffle=True, seed=seed))
    chosen = [order[start : start + size] for start in range(0, len(order), size)]
    loader = loader_of(dataloader, chosen)
    # `zip` starts the workers here, before the bar's thread exists, whose locks they would inherit.
    batches = (batch for _, batch in zip(range(num_batches), loader))
    if is_main_process():
        batches = with_progress(batches, 'training images', total=num_batches)
    yield from batches
