"""The digits data set of the trainings: making it, and pointing their configs to it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..datasets.digits import DigitsOptions, is_made, make_digits
from ..progress import counting_bar
from .run import path_option


def prepare_digits(data: Path, options: DigitsOptions, console: Console) -> None:
    """Make the data set unless it exists.

    Args:
        data (Path): Directory of the data set.
        options (DigitsOptions): Options of the data set.
        console (Console): Where to show a progress bar.
    """
    total, shown = options.num_train + options.num_val, not is_made(data, options)
    with counting_bar('making digits', total, console, shown) as advance:
        make_digits(data, options, on_image=advance)


def data_paths(data: Path) -> dict[str, str]:
    """Return config overrides with the paths of a digits data set.

    Args:
        data (Path): Directory of the data set.
    """
    root = path_option(data)
    loaders = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    ann_file = f'{root}/annotations/val.json'
    return {**loaders, **{f'{split}_evaluator.ann_file': ann_file for split in ('val', 'test')}}
