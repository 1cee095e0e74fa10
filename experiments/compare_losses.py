"""Time RdimKD's losses alone, beside those of other distillations, all on the same maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from rdimkd_det.benchmark.command import make_parser, run
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.benchmark.tables import print_costs
from rdimkd_det.commands import cli
from rdimkd_det.losses import RdimKDLoss
from rdimkd_det.projections import RandomProjection
from rdimkd_det.stopwatch import measure

from .rivals import L2, MGD, PKD, L2WithAdapter

RIVALS = {'l2': L2, 'l2-adapter': L2WithAdapter, 'pkd': PKD, 'mgd': MGD}
VARIANTS = ('plain', 'standardize', 'plain-adapter', 'standardize-adapter')
LOSSES = (*RIVALS, *VARIANTS)
# Memory layouts of the teacher's maps: this package's teacher returns channels_last maps, others
# return contiguous ones.
LAYOUTS = ('as handed over', 'contiguous')


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--compare', nargs='+', default=LOSSES, choices=LOSSES, metavar='LOSS',
                        help=f'some of: {", ".join(LOSSES)}. Defaults to all')  # fmt: skip
    args = parser.parse_args()
    run(args, lambda subject: time_losses(subject, args.compare, args.rounds), print_losses)


def time_losses(subject: Subject, names: Sequence[str], rounds: int) -> dict:
    """Measure losses alone, on each memory layout of the teacher's maps.

    Args:
        subject (Subject): The two networks and their batch.
        names (Sequence[str]): Some of :data:`LOSSES`.
        rounds (int): Number of timed rounds.
    """
    _, loss = subject.model.distill.items()[0]
    dim = loss.projections[0].basis.shape[1]
    builders = {**RIVALS, **rdimkd_variants(dim)}
    compared = {name: builders[name] for name in names}
    pieces = {
        (layout, name): piece
        for layout in LAYOUTS
        for name, piece in loss_pieces(subject, compared, layout).items()
    }
    costs = measure(pieces, rounds, subject.device)
    losses = {
        layout: {name: asdict(costs[layout, name]) for name in compared} for layout in LAYOUTS
    }
    return {'rounds': rounds, 'dim': dim, 'losses': losses}


def print_losses(report: Mapping) -> None:
    """Print the costs of all losses, a table per layout."""
    height, width = report['shape']
    what = f'{report["batch"]} x {height} x {width}, {report["machine"]["device"]}'
    for layout, costs in report['losses'].items():
        title = f"losses alone, forward and backward, d = {report['dim']}, teacher's maps {layout}"
        print_costs(f'{title}: {what}', costs, of='pkd')


def loss_maps(subject: Subject, layout: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return maps of the student and of the teacher at the first tap, in a step's precision.

    The student's maps are noise in the shape of the teacher's, because some losses need equal
    channels.

    Args:
        subject (Subject): The two networks and their batch.
        layout (str): One of :data:`LAYOUTS`.
    """
    tap, teacher = next(iter(subject.teacher_maps().items()))
    if layout == 'contiguous':
        teacher = [maps.contiguous() for maps in teacher]
    like = subject.student_maps()[tap][0]
    student = [
        torch.randn(maps.shape, dtype=like.dtype, device=like.device).requires_grad_()
        for maps in teacher
    ]
    return student, teacher


def rdimkd_variants(dim: int) -> dict[str, Callable[[Sequence[int]], RdimKDLoss]]:
    """Return the name of each of :data:`VARIANTS`, with a function that builds the loss.

    Args:
        dim (int): Number of directions d.

    Returns:
        dict[str, Callable]: Name to a function of the channels of each level.
    """
    return {name: partial(_rdimkd, name, dim) for name in VARIANTS}


def _rdimkd(name: str, dim: int, channels: Sequence[int]) -> RdimKDLoss:
    projections = [RandomProjection(dim, c, level) for level, c in enumerate(channels)]
    normalize = 'standardize' if name.startswith('standardize') else None
    loss = RdimKDLoss(projections, channels, channels, len(channels), normalize)
    if name.endswith('-adapter'):
        loss.adapters = nn.ModuleList(nn.Conv2d(c, c, 1) for c in channels)
    return loss


def loss_pieces(
    subject: Subject, builders: Mapping[str, Callable[[Sequence[int]], nn.Module]], layout: str
) -> dict[str, Callable]:
    """Return a forward and backward pass of each loss.

    Args:
        subject (Subject): The two networks and their batch.
        builders (Mapping[str, Callable]): Name to a function that builds the loss from the channels
            of each level. The loss maps both lists of maps to a tensor or a dict of tensors.
        layout (str): One of :data:`LAYOUTS`.

    Returns:
        dict[str, Callable]: Name to a function without arguments.
    """
    student, teacher = loss_maps(subject, layout)
    channels = [maps.shape[1] for maps in teacher]

    def piece(build: Callable) -> Callable:
        loss = build(channels).to(subject.device)
        leaves = [*student, *loss.parameters()]

        def forward_and_backward() -> None:
            with subject.in_training():
                value = loss(student, teacher)
            value = sum(value.values()) if isinstance(value, dict) else value
            torch.autograd.grad(value, leaves)

        return forward_and_backward

    return {name: piece(build) for name, build in builders.items()}


if __name__ == '__main__':
    cli.run(main)
