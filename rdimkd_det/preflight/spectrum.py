"""How many directions a teacher's maps vary in: on one image, and over the data set."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn

from ..distiller import RdimKDDistiller
from ..distiller.distillation import Distillation
from ..losses import FeatureLoss
from ..losses.padding import positions_in_images
from ..progress import with_progress
from ..samples import image_sizes
from ..training.calibration import ChannelCovariance
from .measurements import training_input
from .report import Report, Table
from .static import live_modules

SHARE = 0.95  # of the variance
SPECTRUM_COLUMNS = ('level', 'channels', 'of an image', 'of all images', 'd', 'kept by d')


@torch.no_grad()
def measure_spectra(model: RdimKDDistiller, batches: Sequence[dict], report: Report) -> None:
    """Report how many directions hold most variance, of single images and of all images.

    A vision transformer's map is of low rank on an image, and of nearly full rank over a data set
    (arXiv 2511.15572), so that one basis for all images keeps less of it than of an FPN's.
    """
    number = sum(len(batch['inputs']) for batch in batches)
    table = Table(
        f'Directions that hold {SHARE:.0%} of the variance, {number} images', SPECTRUM_COLUMNS
    )
    for part in live_modules(model):
        spectra = _spectra(part, model.data_preprocessor, batches)
        for tap, loss in part.items():
            for level, name in enumerate(loss.level_names):
                single, whole = spectra[tap, level]
                table.rows.append(
                    (name, str(loss.teacher_channels[level]), single, whole, *_kept(loss, level))
                )
    if table.rows:
        report.tables.append(table)


def _kept(loss: FeatureLoss, level: int) -> tuple[str, str]:
    if not loss.projections:
        return '-', '-'
    projection = loss.projections[level]
    return str(projection.basis.shape[1]), f'{float(projection.variance_kept):.0%}'


def _spectra(part: Distillation, preprocessor: nn.Module, batches: Sequence[dict]) -> dict:
    """Return (directions of an image, median; directions of all images) by tap and level."""
    singles: dict[tuple, list[int]] = {}
    wholes: dict[tuple, ChannelCovariance] = {}
    for batch in with_progress(batches, 'spectrum'):
        data = training_input(preprocessor, batch)
        sizes = image_sizes(data['data_samples'], part.pipeline_scale)
        feats = part.teacher_feats(data['inputs'], data['data_samples'])
        for tap, levels in feats.items():
            for level, maps in enumerate(levels):
                key, stride = (tap, level), part.level_pairs[tap][level][1].stride
                for number, of_image in enumerate(maps.split(1)):
                    size = None if sizes is None else sizes[number : number + 1]
                    positions = positions_in_images(size, of_image, stride)
                    single = ChannelCovariance(maps.shape[1], maps.device)
                    whole = wholes.setdefault(key, ChannelCovariance(maps.shape[1], maps.device))
                    for covariance in (single, whole):
                        covariance.update(of_image, positions)
                    singles.setdefault(key, []).append(num_directions(single.compute()))
    return {
        key: (f'{median(singles[key]):g}', str(num_directions(wholes[key].compute())))
        for key in singles
    }


def num_directions(covariance: Tensor) -> int:
    """Return how many principal directions hold most of the variance."""
    values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
    return int((values.cumsum(0) < SHARE * values.sum()).sum()) + 1
