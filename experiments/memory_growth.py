"""Measure the peak memory of a step, beyond weights and optimizer state, for several input sizes.

CONFIG is a distilled config; its teacher gets random weights. A GPU is not required.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger

from rdimkd_det.benchmark.preparation import prepare
from rdimkd_det.benchmark.steps import DISTILLED, LOSS, MONITORED, PLAIN, TEACHER, step_pieces
from rdimkd_det.benchmark.subject import Subject
from rdimkd_det.commands import cli
from rdimkd_det.commands.cfg_options import OptionsAction
from rdimkd_det.stopwatch import peak_memory

PIECES = (PLAIN, DISTILLED, MONITORED, f'{TEACHER}as configured', LOSS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--inputs', nargs='+', type=numbers, required=True, metavar='NxHxW')
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, default={})
    args = parser.parse_args()
    MMLogger.get_instance('benchmark').setLevel('ERROR')
    cfg = cli.read_config_file(args.config)
    cli.apply_options(cfg, args.cfg_options)
    print('input, then MiB of:', ', '.join(PIECES))
    with tempfile.TemporaryDirectory() as folder:
        prepare(cfg, Path(folder, 'random.pth'))
        for num, *shape in args.inputs:
            peaks = memory(cfg, num, tuple(shape))
            name = 'x'.join(map(str, (num, *shape)))
            print(f'{name:12}', *(f'{peak / 2**20:8.1f}' for peak in peaks), flush=True)


def numbers(text: str) -> list[int]:
    """Parse an input such as 1x384x512: number of images, height and width."""
    num, height, width = map(int, text.split('x'))
    return [num, height, width]


def memory(cfg: Config, num: int, shape: tuple[int, int]) -> list[int]:
    """Return the peak memory in bytes of each of ``PIECES``."""
    torch.manual_seed(0)
    device = torch.device(get_device())
    pieces = step_pieces(Subject(cfg, num, shape, device))
    for name in PIECES:
        pieces[name]()  # warm-up: one-time memory, such as the optimizer's state, does not count
    return [peak_memory(pieces[name], device) for name in PIECES]


if __name__ == '__main__':
    cli.run(main)
