"""The data set of the trainings: made when it is missing, and found by their configs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..datasets.digits import DigitsOptions, is_made, make_digits
from ..progress import counting_bar
from .run import path_option


def prepare_digits(data: Path, options: DigitsOptions, console: Console) -> None:
    """Make the data set unless it is there.

    Args:
        data (Path): Its directory.
        options (DigitsOptions): What it looks like.
        console (Console): Where to show a progress bar.
    """
    total, shown = options.num_train + options.num_val, not is_made(data, options)
    with counting_bar('making digits', total, console, shown) as advance:
        make_digits(data, options, on_image=advance)


def data_paths(data: Path) -> dict[str, str]:
    """Config overrides that say where a digits data set lies.

    Args:
        data (Path): Its directory.
    """
    root = path_option(data)
    loaders = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    ann_file = f'{root}/annotations/val.json'
    return {**loaders, **{f'{split}_evaluator.ann_file': ann_file for split in ('val', 'test')}}
