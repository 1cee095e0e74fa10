"""Show how many directions of the teacher's feature maps hold a given share of their variance."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli
from rdimkd_det.commands.checks import check_data, check_model
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.distiller import distilled_student
from rdimkd_det.files.configs import without_cache
from rdimkd_det.reports.charts import check_picture, save_figure
from rdimkd_det.training.calibration import calibration_batches, teacher_covariances

SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Analyse the teacher's feature maps.")
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('--images', type=int, default=256, help='training images. Defaults to 256')
    parser.add_argument(
        '--out', type=Path, default=Path('spectrum.png'), help='picture. Defaults to spectrum.png'
    )
    args = parser.parse_args()
    if args.images < 1:
        raise ConfigError(f'--images must be 1 or more, got {args.images}.')
    check_picture(args.out)
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config_file(args.config)
    with errors_explained(cfg):
        spectra = measure(cfg, args.images)
    print_table(spectra)
    draw(spectra, args.out)
    print(f'wrote {args.out}')


def measure(cfg: Config, num_images: int) -> dict[str, Tensor]:
    """Return the cumulative shares of variance (C,) of each level, by descending eigenvalue."""
    model = distilled_student(check_model(without_cache(cfg), training=False)).to(get_device())
    check_data(cfg, ['train'])
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    batches = calibration_batches(loader, num_images, seed=0)
    spectra = {}
    parts = model.distill.per_teacher
    all_covariances = teacher_covariances(parts, model.data_preprocessor, batches)
    for part, covariances in zip(parts, all_covariances):
        for tap, loss in part.items():
            for name, covariance in zip(loss.level_names, covariances[tap]):
                values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0)
                spectra[name] = values.cumsum(0) / values.sum()
    return spectra


def print_table(spectra: dict[str, Tensor]) -> None:
    """Print the smallest d that keeps each share of variance, per level."""
    table = Table(title='directions d that keep a share of the variance')
    for column in ('level', 'channels', *(f'{share:.0%}' for share in SHARES)):
        table.add_column(column, justify='right')
    for name, shares in spectra.items():
        dims = [str(int((shares < share).sum()) + 1) for share in SHARES]
        table.add_row(name, str(len(shares)), *dims)
    Console().print(table)


def draw(spectra: dict[str, Tensor], path: Path) -> None:
    """Draw the share of variance over d, one curve per level."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    for name, shares in spectra.items():
        axes.plot(range(1, len(shares) + 1), shares.cpu(), label=name)
    axes.set(xlabel='directions d', ylabel='share of variance', xscale='log', ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == '__main__':
    cli.run(main)
