"""Draw what plain and RdimKD student detect on a few val images, beside the ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console

from rdimkd_det.commands import cli
from rdimkd_det.reports.detections import Detection, Example
from rdimkd_det.reports.evaluation import evaluate, find_examples
from rdimkd_det.reports.runs import read_run

NUM_IMAGES = 2
COLOURS = ('#f4a261', '#2a9d8f', '#e76f51', '#457b9d', '#e9c46a', '#8e6bbf', '#43aa8b')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('plain', type=Path, help='work directory of the plain student')
    parser.add_argument('rdimkd', type=Path, help='work directory of the RdimKD student')
    parser.add_argument('--out', type=Path, required=True, help='a .jpg or .png file')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = [read_run(args.plain, 'plain student'), read_run(args.rdimkd, 'RdimKD student')]
    examples = find_examples(runs, {run.name: evaluate(run, Console()) for run in runs})
    # Spread over the set and not chosen by what was found.
    step = len(examples) // (NUM_IMAGES + 1)
    draw(examples[step : step * NUM_IMAGES + 1 : step], args.out)
    print(f'wrote {args.out}')


def draw(examples: Sequence[Example], out: Path) -> None:
    """Draw a row per image: ground truth, then the detections of each student."""
    columns = 1 + len(examples[0].found)
    size = 3.2 * columns, 2.6 * len(examples)
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(examples), columns, squeeze=False)
    names = sorted({it.name for example in examples for it in example.truths})
    for row, example in zip(grid, examples):
        shown = {'ground truth': example.truths, **example.found}
        for axes, (title, detections) in zip(row, shown.items()):
            number = sum(it.right for it in detections)
            found = '' if title == 'ground truth' else f': {number} of {len(example.truths)} found'
            _draw_image(axes, example.path, detections, names, title + found)
    figure.savefig(out, dpi=110)


def _draw_image(
    axes: Axes, path: Path, detections: Sequence[Detection], names: Sequence[str], title: str
) -> None:
    axes.imshow(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB))
    for it in detections:
        x1, y1, x2, y2 = it.box
        colour = COLOURS[names.index(it.name) % len(COLOURS)] if it.name in names else 'white'
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=1.5))
    axes.set_title(title, fontsize=9)
    axes.axis('off')


if __name__ == '__main__':
    cli.run(main)
