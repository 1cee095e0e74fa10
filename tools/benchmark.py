"""What distillation costs: step times and memory, plain and distilled, against the floor."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from rich.console import Console
from rich.table import Table
from rivals import L2, MGD, PKD, L2WithAdapter
from torch import nn

from rdimkd_det import ConfigError, RandomProjection, RdimKDLoss, fit_projections
from rdimkd_det.acceleration import Acceleration
from rdimkd_det.commands import cli
from rdimkd_det.commands.checks import check_model
from rdimkd_det.features import record_outputs
from rdimkd_det.files.configs import read_detector_config
from rdimkd_det.files.whole import write_text
from rdimkd_det.stopwatch import Cost, describe_machine, measure
from rdimkd_det.teacher import Teacher

LOSSES = ('l2', 'l2-adapter', 'pkd', 'mgd', 'plain', 'standardize', 'plain-adapter',
          'standardize-adapter')  # fmt: skip
NUM_BOXES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description='Measure what distillation costs.')
    parser.add_argument('config', help='a distilled config')
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'),
                        help='input size of both networks. Defaults to 800 1344')  # fmt: skip
    parser.add_argument('--batch', type=int, default=1, help='images a step. Defaults to 1')
    parser.add_argument('--rounds', type=int, default=20, help='timed rounds. Defaults to 20')
    parser.add_argument('--only', choices=['steps', 'losses'], help='one half of the measurement')
    parser.add_argument('--compare', nargs='*', default=LOSSES, choices=LOSSES, metavar='LOSS',
                        help=f'losses to time alone, of: {", ".join(LOSSES)}')  # fmt: skip
    parser.add_argument('--random-weights', action='store_true',
                        help="time a teacher without its checkpoint's weights")  # fmt: skip
    parser.add_argument('--json', metavar='F', help='also write the numbers to this file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                        help='override settings of the config')  # fmt: skip
    args = parser.parse_args()
    MMLogger.get_instance('benchmark').setLevel('ERROR')  # a line per parameter of the optimizer
    cfg = cli.read_config_file(args.config)
    try:
        cfg.merge_from_dict(args.cfg_options)
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise ConfigError(f'--cfg-options: {error}') from error
    with tempfile.TemporaryDirectory() as folder:
        prepare(cfg, args, Path(folder))
        report = run(cfg, args)
    print_report(report)
    if args.json:
        write_text(Path(args.json), json.dumps(report, indent=2) + '\n')


def prepare(cfg: Config, args: argparse.Namespace, folder: Path) -> None:
    """Find mistakes, and change the config to what can be timed here."""
    if min(*args.shape, args.batch, args.rounds) < 1:
        raise ConfigError('--shape, --batch and --rounds must be 1 or more.')
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json {args.json}: its directory does not exist.')
    if 'optim_wrapper' not in cfg:
        raise ConfigError(f'{args.config} has no optim_wrapper, so there is no training step.')
    if not isinstance(cfg.get('model'), dict) or not isinstance(cfg.model.get('teacher'), dict):
        raise ConfigError(f'{args.config} has no model with one teacher; nothing to compare.')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    student = cfg.model.get('student') or {}
    if 'data_preprocessor' in student:
        student.data_preprocessor.batch_augments = None  # --shape says the size
    if args.random_weights:
        teacher = MODELS.build(read_detector_config(cfg.model.teacher.config))
        cfg.model.teacher.checkpoint = str(folder / 'random.pth')
        torch.save(teacher.state_dict(), cfg.model.teacher.checkpoint)
    if get_device() == 'cpu':
        cfg.optim_wrapper.type = 'OptimWrapper'
        for option in ('loss_scale', 'dtype'):  # of mixed precision, which needs a GPU
            cfg.optim_wrapper.pop(option, None)
    cfg.optim_wrapper.optimizer.lr = 0.0  # the same step over and over
    check_model(cfg, training=True)


def run(cfg: Config, args: argparse.Namespace) -> dict:
    """Measure everything."""
    device = torch.device(get_device())
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device).train()
    batch = random_batch(args.batch, args.shape)
    fit_projections(model, [batch])
    data = model.data_preprocessor(batch, True)
    report = {
        'command': f'python {" ".join(sys.argv)}',
        'date': date.today().isoformat(),
        'machine': describe_machine(device),
        'shape': list(args.shape),
        'batch': args.batch,
        'rounds': args.rounds,
    }
    if args.only != 'losses':
        pieces = step_pieces(cfg, model, batch)
        report.update(compare_with_floor(measure(pieces, args.rounds, device)))
        report['weights'] = {
            'student': sum(p.nbytes for p in model.parameters()),
            'teacher': sum(p.nbytes for p in model.distill.teacher._network.parameters()),
        }
    if args.only != 'steps':
        feats = model.distill.teacher_feats(data['inputs'], data['data_samples'])
        _, loss = model.distill.items()[0]
        dim = loss.projections[0].basis.shape[1]
        pieces = loss_pieces(next(iter(feats.values())), args.compare, dim)
        costs = measure(pieces, args.rounds, device)
        report.update(dim=dim, losses={name: asdict(cost) for name, cost in costs.items()})
    return report


def compare_with_floor(steps: dict[str, Cost]) -> dict:
    """The floor: a student step, the teacher's fastest forward, and a look at both maps."""
    student, distilled = steps['student step'].median, steps['distilled step'].median
    teacher = min(cost.median for name, cost in steps.items() if name.startswith('teacher:'))
    floor = student + teacher + steps['read both maps'].median
    return {
        'steps': {name: asdict(cost) for name, cost in steps.items()},
        'floor': floor,
        'distilled_to_floor': distilled / floor,
        'distilled_to_plain': distilled / student,
    }


def random_batch(num: int, shape: tuple[int, int]) -> dict:
    """Images of noise with a few objects each, as a data loader gives them."""
    height, width = shape
    corners = torch.rand(NUM_BOXES, 2) * torch.tensor([width / 2, height / 2])
    objects = InstanceData(
        bboxes=HorizontalBoxes(torch.cat([corners, corners + min(shape) / 4], 1)),
        labels=torch.zeros(NUM_BOXES, dtype=torch.long),
        masks=BitmapMasks(np.ones((NUM_BOXES, height, width), np.uint8), height, width),
    )
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    sample.gt_instances, sample.ignored_instances = objects, objects[:0]
    return {
        'inputs': [torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(num)],
        'data_samples': [sample.clone() for _ in range(num)],
    }


def step_pieces(cfg: Config, model: nn.Module, batch: dict) -> dict[str, Callable]:
    """A training step, plain and distilled, and what the difference consists of."""
    device = next(model.parameters()).device
    student = MODELS.build(cfg.model.student).to(device).train()
    student.load_state_dict(model.state_dict())
    wrappers = [build_optim_wrapper(network, cfg.optim_wrapper) for network in (student, model)]
    head_and_loss = MODELS.build(read_detector_config(cfg.model.teacher.config)).to(device).eval()
    distill, data = model.distill, model.data_preprocessor(batch, True)
    inputs, samples = data['inputs'], data['data_samples']
    plain = Teacher(
        cfg.model.teacher.config,
        cfg.model.teacher.checkpoint,
        distill.teacher.taps,
        Acceleration(fuse=False, channels_last=False, precision='fp32'),
    )
    with wrappers[1].optim_context(model):  # autocast, under AMP
        student_maps, teacher_maps = tapped_maps(model, inputs, samples)
    flat = [maps for of_tap in student_maps.values() for maps in of_tap]
    pairs = distill.level_pairs.items()
    read = [student_maps[tap][level.index] for tap, levels in pairs for level, _ in levels]
    read += [maps for of_tap in teacher_maps.values() for maps in of_tap]

    def without_distillation() -> None:
        distill.set_factor(0)
        model.train_step(batch, wrappers[1])
        distill.set_factor(1)

    def as_trained_with() -> None:
        with wrappers[1].optim_context(model):
            distill.teacher_feats(inputs, samples)

    @torch.no_grad()
    def elsewhere() -> None:
        head_and_loss.loss(distill.bridge(inputs, samples), samples)

    def loss() -> torch.Tensor:
        return sum(distill(student_maps, teacher_maps).values())

    return {
        'student step': lambda: student.train_step(batch, wrappers[0]),
        'distilled step': lambda: model.train_step(batch, wrappers[1]),
        'distilled step, weight 0': without_distillation,
        'teacher: as configured': as_trained_with,
        'teacher: fp32, unfused': lambda: plain(distill.bridge(inputs, samples)),
        'teacher with head and loss, fp32': elsewhere,
        'distillation loss, forward': loss,
        'distillation loss, and backward': lambda: torch.autograd.grad(
            loss(), flat, allow_unused=True
        ),
        'read both maps': lambda: [maps.sum() for maps in read],
    }


def tapped_maps(model: nn.Module, inputs: torch.Tensor, samples: list) -> tuple[dict, dict]:
    """The student's maps, as leaves of a graph of their own, and the teacher's."""
    with torch.no_grad(), record_outputs(model, model.distill.taps) as outputs:
        model.extract_feat(inputs)
    student = {tap: [m.detach().requires_grad_() for m in maps] for tap, maps in outputs.items()}
    return student, model.distill.teacher_feats(inputs, samples)


def loss_pieces(teacher: list[torch.Tensor], names: list[str], dim: int) -> dict[str, Callable]:
    """Each loss on the same maps, forward and backward."""
    teacher = [maps.float().contiguous() for maps in teacher]  # as other tools have them
    student = [torch.randn_like(maps).requires_grad_() for maps in teacher]
    channels = [maps.shape[1] for maps in teacher]
    rivals = {'l2': L2, 'l2-adapter': L2WithAdapter, 'pkd': PKD, 'mgd': MGD}

    def piece(name: str) -> Callable:
        loss = rivals[name](channels) if name in rivals else rdimkd(name)
        loss.to(student[0].device)
        leaves = [*student, *loss.parameters()]

        def forward_and_backward() -> None:
            value = loss(student, teacher)
            value = sum(value.values()) if isinstance(value, dict) else value
            torch.autograd.grad(value, leaves)

        return forward_and_backward

    def rdimkd(name: str) -> RdimKDLoss:
        projections = [RandomProjection(dim, c, level) for level, c in enumerate(channels)]
        normalize = 'standardize' if name.startswith('standardize') else None
        loss = RdimKDLoss(projections, channels, channels, len(channels), normalize)
        if name.endswith('-adapter'):
            loss.adapters = L2WithAdapter(channels).adapters
        return loss

    return {name: piece(name) for name in names}


def print_report(report: dict) -> None:
    """Print a table of the steps, and one of the losses."""
    height, width = report['shape']
    what = f'{report["batch"]} x {height} x {width}, {report["machine"]["device"]}'
    if 'steps' in report:
        print_table(f'steps: {what}', report['steps'], of='student step')
        print(f'distilled step: {report["distilled_to_floor"]:.3f} of the floor, '
              f'{report["distilled_to_plain"]:.3f} of the student step; floor: student step + '
              f'fastest teacher + reading both maps once = {report["floor"]:.1f} ms')  # fmt: skip
    if 'losses' in report:
        title = f'losses alone, forward and backward, d = {report["dim"]}: {what}'
        print_table(title, report['losses'], of='pkd')


def print_table(title: str, costs: dict[str, dict], of: str) -> None:
    """Print costs, and their share of one of them."""
    table = Table(title=title)
    table.add_column(no_wrap=True)
    for column in ('ms', 'quartiles', f'of {of}', 'peak MiB'):
        table.add_column(column, justify='right', no_wrap=True)
    for name, cost in costs.items():
        share = f'{cost["median"] / costs[of]["median"]:.2f}' if of in costs else '-'
        quartiles = f'{cost["low"]:.1f} - {cost["high"]:.1f}'
        table.add_row(name, f'{cost["median"]:.1f}', quartiles, share,
                      f'{cost["memory"] / 2**20:.0f}')  # fmt: skip
    Console(width=100).print(table)


if __name__ == '__main__':
    cli.run(main)
