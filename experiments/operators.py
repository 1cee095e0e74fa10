"""Time mmcv's operators: compiled, where mmcv has them, and the stand-ins, at usual sizes.

Each row is forward, and backward where there is one, at the size of a training with batches of two
images of 800x1344 pixels. --json FILE keeps the result.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from unittest import mock

import torch
from mmengine.device import get_device
from mmengine.fileio import dump
from mmengine.logging import MMLogger

from rdimkd_det.commands import cli
from rdimkd_det.host.ops import Operators, backend, provide_operators
from rdimkd_det.stopwatch import describe_device, measure

STAND_INS = provide_operators()
from mmcv import ops  # noqa: E402  # after its operators are provided

WAYS = ('compiled', 'torchvision', 'torch')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--json', help='write the times to this file')
    args = parser.parse_args()
    MMLogger.get_instance('operators').setLevel('ERROR')
    torch.manual_seed(0)
    device = torch.device(get_device())
    ways = [way for way in WAYS if way == 'torch' or available(way)]
    print('milliseconds', *ways, sep='\t')
    times = {}
    for name, make in CASES.items():
        work = make(device)
        pieces = {way: partial(run, way, work) for way in ways}
        costs = measure(pieces, args.rounds, device)
        times[name] = {way: round(cost.median, 2) for way, cost in costs.items()}
        print(name, *(f'{times[name][way]:.2f}' for way in ways), sep='\t', flush=True)
    if args.json:
        command = ' '.join(['python', *sys.argv])
        machine = describe_device(device)
        dump(
            {'command': command, 'date': str(date.today()), 'machine': machine, 'ms': times},
            args.json,
            indent=1,
        )


def available(way: str) -> bool:
    return not STAND_INS if way == 'compiled' else backend.torchvision_loads()


def run(way: str, work: Callable[[], None]) -> None:
    with operators_of(way):
        work()


@contextmanager
def operators_of(way: str) -> Iterator[None]:
    """Use mmcv's own operators, or the stand-ins with or without torchvision."""
    if way == 'compiled':
        yield
        return
    modules = [it for name, it in sys.modules.items() if name.startswith('mmcv.ops.')]
    patches = [
        mock.patch.object(it, 'ext_module', Operators('mmcv._ext'))
        for it in modules
        if hasattr(it, 'ext_module')
    ]
    if way == 'torch':
        patches.append(mock.patch.object(backend, '_has_kernel', lambda name, device: False))
    else:
        patches.append(mock.patch.object(backend, 'SLOWER_ON_CPU', ()))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in reversed(patches):
            patch.stop()


def boxes(num: int, device: torch.device, height: int = 800, width: int = 1344) -> torch.Tensor:
    size = torch.tensor([width, height])
    start, sides = torch.rand(num, 2) * size, torch.rand(num, 2) ** 2 * size / 3
    return torch.cat([start, (start + sides + 1).minimum(size)], dim=1).to(device)


def nms(num: int, device: torch.device) -> Callable[[], None]:
    given, scores = boxes(num, device), torch.rand(num, device=device)
    return lambda: ops.nms(given, scores, 0.7)


def soft_nms(device: torch.device) -> Callable[[], None]:
    given, scores = boxes(1000, device), torch.rand(1000, device=device)
    return lambda: ops.soft_nms(given, scores, 0.5, min_score=0.05)


def nms_rotated(device: torch.device) -> Callable[[], None]:
    corners, scores = boxes(1000, device), torch.rand(1000, device=device)
    angles = torch.rand(1000, 1, device=device) * 3
    given = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2], angles], dim=1)
    return lambda: ops.nms_rotated(given, scores, 0.1)


def both_ways(function: Callable, *inputs: torch.Tensor) -> Callable[[], None]:
    leaves = [it.requires_grad_() for it in inputs]

    def step() -> None:
        torch.autograd.grad(function(*leaves).sum(), leaves)

    return step


def roi_align(device: torch.device, rotated: bool = False) -> Callable[[], None]:
    """512 regions of both images, on the level of stride 8 with 256 channels."""
    corners = boxes(512, device)
    image = torch.arange(512, device=device)[:, None] % 2
    maps = torch.randn(2, 256, 100, 168, device=device)
    # Regions of the sizes that this level gets.
    corners[:, 2:] = corners[:, :2] + 112 + 112 * torch.rand(512, 2, device=device)
    if not rotated:
        layer = ops.RoIAlign(7, 1 / 8, 0)
    else:
        corners = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2], image / 2], dim=1)
        layer = ops.RoIAlignRotated(7, 1 / 8, 2)
    rois = torch.cat([image, corners], dim=1)
    return both_ways(lambda it: layer(it, rois), maps)


def deform_conv(device: torch.device, modulated: bool) -> Callable[[], None]:
    """A 3x3 convolution of 256 channels at stride 16."""
    maps, weight = torch.randn(2, 256, 50, 84, device=device), torch.randn(256, 256, 3, 3) / 48
    offset = torch.randn(2, 18, 50, 84, device=device)
    inputs = [maps, offset, weight.to(device)]
    if not modulated:
        return both_ways(lambda *it: ops.deform_conv2d(*it, 1, 1), *inputs)
    inputs.insert(2, torch.rand(2, 9, 50, 84, device=device))
    return both_ways(lambda *it: ops.modulated_deform_conv2d(*it, None, 1, 1), *inputs)


CASES = {
    'nms, 1000 boxes': lambda device: nms(1000, device),
    'nms, 8000 boxes': lambda device: nms(8000, device),
    'soft_nms, 1000 boxes': soft_nms,
    'nms_rotated, 1000 boxes': nms_rotated,
    'roi_align, 512 regions': roi_align,
    'roi_align_rotated, 512 regions': lambda device: roi_align(device, rotated=True),
    'deform_conv2d, 256 channels': lambda device: deform_conv(device, modulated=False),
    'modulated_deform_conv2d, 256 channels': lambda device: deform_conv(device, modulated=True),
}

if __name__ == '__main__':
    cli.run(main)
