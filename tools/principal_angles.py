"""Show how the student's feature maps turn towards the teacher's during training."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path

import torch
from matplotlib.figure import Figure
from mmengine.device import get_device
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rdimkd_det import ConfigError
from rdimkd_det.commands import cli
from rdimkd_det.commands.checks import check_data, check_model
from rdimkd_det.commands.mistakes import errors_explained
from rdimkd_det.distiller import RdimKDDistiller, distilled_student
from rdimkd_det.distiller.labelled import labelled_first
from rdimkd_det.distiller.monitoring import ComparedMaps
from rdimkd_det.features import record_outputs
from rdimkd_det.files.checkpoints import read_checkpoint_safely, weights_in
from rdimkd_det.files.configs import counts_iterations, without_cache
from rdimkd_det.files.strict_loading import load_strictly
from rdimkd_det.projections import default_dim
from rdimkd_det.reports.charts import check_picture, save_figure
from rdimkd_det.samples import image_sizes
from rdimkd_det.training.calibration import ChannelCovariance, calibration_batches

# Level to (epoch or iteration, mean angle in degrees) of each checkpoint.
Curves = dict[str, list[tuple[int, float]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('checkpoints', nargs='+', help='checkpoints that its training wrote')
    parser.add_argument(
        '--plain',
        nargs='+',
        default=[],
        metavar='CHECKPOINT',
        help='checkpoints of the same student, trained without a teacher',
    )
    parser.add_argument('--dim', type=int, help='directions; default: a quarter of the channels')
    parser.add_argument('--images', type=int, default=64, help='training images. Defaults to 64')
    parser.add_argument(
        '--out', type=Path, default=Path('angles.png'), help='picture. Defaults to angles.png'
    )
    args = parser.parse_args()
    for option in ('images', 'dim'):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ConfigError(f'--{option} must be 1 or more, got {value}.')
    check_picture(args.out)
    return args


def main() -> None:
    args = parse_args()
    cfg = cli.read_config_file(args.config)
    with errors_explained(cfg):
        model = distilled_student(check_model(without_cache(cfg), training=False))
        model = model.to(get_device()).eval()
        check_data(cfg, ['train'])
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        batches = calibration_batches(loader, args.images, seed=0)
        checkpoints = {'distilled': args.checkpoints, 'plain': args.plain}
        # An iteration-based training stays in epoch 0.
        key, unit = ('iter', 'iteration') if counts_iterations(cfg) else ('epoch', 'epoch')
        curves = follow(model, checkpoints, batches, args.dim, key)
    print_table(curves, unit)
    draw(curves, args.out, unit)
    print(f'wrote {args.out}')


def follow(
    model: RdimKDDistiller,
    checkpoints: Mapping[str, Sequence[str]],
    batches: Iterable[dict],
    dim: int | None,
    key: str = 'epoch',
) -> dict[str, Curves]:
    """Measure the angles at each level for checkpoints of some students, by epoch or iteration.

    ``key`` is the entry of a checkpoint's 'meta' that counts: 'epoch' or 'iter'.
    """
    students, weights = [], {}
    for name, path in ((name, path) for name, paths in checkpoints.items() for path in paths):
        content = read_checkpoint_safely(path, 'student')
        weights[path] = weights_in(content, path, 'student')
        students.append((name, path, (content.get('meta') or {}).get(key) or 0))
    measured = measure(model, weights, batches)
    curves: dict[str, Curves] = {}
    for name, path, step in students:
        for level, (covariance, num_channels) in measured[path].items():
            angle = float(principal_angles(covariance.compute(), num_channels, dim).mean())
            curves.setdefault(name, {}).setdefault(level, []).append((step, angle))
    for levels in curves.values():
        for points in levels.values():
            points.sort(key=itemgetter(0))
    return curves


@torch.no_grad()
def measure(
    model: RdimKDDistiller, weights: Mapping[str, Mapping[str, Tensor]], batches: Iterable[dict]
) -> dict[str, dict[str, tuple[ChannelCovariance, tuple[int, int]]]]:
    """Measure the covariance (C_s + C_t, C_s + C_t) of both maps, with C_s and C_t.

    They are by checkpoint and level. Every student is shown a batch in turn, so that the teacher
    sees it once.
    """
    sums: dict[str, dict] = {path: {} for path in weights}
    parts = model.distill.per_teacher
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        batch = labelled_first(data['inputs'], data['data_samples'])
        teacher_feats = [part.teacher_feats(batch.inputs, batch.samples) for part in parts]
        batch = batch.shrunk(model.distill.shrink)
        sizes = image_sizes(batch.samples)
        for path, of_student in weights.items():
            load_strictly(model, of_student, path, 'this config', 'student')
            with record_outputs(model, model.distill.taps) as outputs:
                model.extract_feat(batch.inputs)
            for part, feats in zip(parts, teacher_feats):
                for found in part.compared(outputs, feats, sizes):
                    _add_maps(sums[path], found)
    return sums


def _add_maps(sums: dict, found: ComparedMaps) -> None:
    for level, name in enumerate(found.loss.level_names):
        pair = found.loss.same_size(found.student[level], found.teacher[level])
        both = torch.cat(pair, 1)
        channels = pair[0].shape[1], pair[1].shape[1]
        new = ChannelCovariance(both.shape[1], both.device), channels
        within = found.positions and found.positions[level]
        sums.setdefault(name, new)[0].update(both, within)


def principal_angles(
    covariance: Tensor, num_channels: tuple[int, int], dim: int | None = None
) -> Tensor:
    """Compute the angles between the student's and the teacher's leading principal components.

    The d leading components of each map, as functions of image and position, span a subspace;
    these are the principal angles between both subspaces (Björck and Golub, 1973): the arc cosines
    of the canonical correlations of the components. No adapter is needed, whatever the channels.

    Args:
        covariance (Tensor): Covariance (C_s + C_t, C_s + C_t) of the channels of both maps,
            float64.
        num_channels (tuple[int, int]): C_s and C_t.
        dim (int, optional): Number of components d. Defaults to a quarter of the fewer channels.

    Returns:
        Tensor: The angles (d,) in degrees, from the smallest: 0 where the student's map can be
        turned into the teacher's, 90 where they have nothing in common.
    """
    covariance, student = covariance.cpu(), num_channels[0]
    dim = min(dim or default_dim(*num_channels), *num_channels)
    whitened = []
    for block in (covariance[:student, :student], covariance[student:, student:]):
        values, vectors = torch.linalg.eigh(block)
        scale = values[-dim:].clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
        whitened.append(vectors[:, -dim:] * scale)
    shared = whitened[0].t() @ covariance[:student, student:] @ whitened[1]
    return torch.linalg.svdvals(shared).clamp(max=1).acos().rad2deg()


def print_table(curves: dict[str, Curves], unit: str) -> None:
    """Print the mean angle at each level and epoch or iteration."""
    table = Table(title="mean angle between student's and teacher's components, degrees")
    for column in ('student', unit, *next(iter(curves.values()))):
        table.add_column(column, justify='right')
    for name, levels in curves.items():
        for points in zip(*levels.values()):
            table.add_row(name, str(points[0][0]), *(f'{angle:.1f}' for _, angle in points))
    Console().print(table)


def draw(curves: dict[str, Curves], path: Path, unit: str) -> None:
    """Draw the mean angle over the epochs or iterations, one panel per level."""
    levels = list(next(iter(curves.values())))
    figure = Figure(figsize=(3.2 * len(levels) + 0.6, 3.2), layout='constrained')
    panels = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axes, level in zip(panels, levels):
        for name, of_student in curves.items():
            axes.plot(*zip(*of_student[level]), marker='o', label=name)
        axes.set(title=level, xlabel=unit, ylim=(0, 90))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('mean principal angle, degrees')
    panels[0].legend()
    save_figure(figure, path)


if __name__ == '__main__':
    cli.run(main)
