"""The sets of photographs: where they come from, and whether they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rdimkd_det.errors import ConfigError


@dataclass(frozen=True)
class Photos:
    """A set of photographs in COCO format, as ``experiments/photos/convert.py`` writes it.

    Args:
        name (str): Name of the set.
        source (str): GitHub repository it comes from.
        commit (str): Commit of the repository.
        licence (str): Licence of the photographs.
        num_train (int): Number of training images.
    """

    name: str
    source: str
    commit: str
    licence: str
    num_train: int


BCCD = Photos(
    'bccd', 'Shenggan/BCCD_Dataset', 'd272fb14cdff6e473fafeeeba32aba5f560e9e43', 'MIT', 292
)
AQUARIUM = Photos(
    'aquarium',
    'sumit2011/underwater-object-detection',
    'eee4be3324cd019b9032bb13f22a756a77866503',
    'CC BY 4.0',
    448,
)


def prepare_photos(directory: Path, photos: Photos, console: Console) -> None:
    """Check that the set is there.

    Raises:
        ConfigError: It is not; says how to get it.
    """
    missing = [
        path
        for path in (directory / 'images', directory / 'annotations' / 'val.json')
        if not path.exists()
    ]
    if missing:
        raise ConfigError(
            f'{missing[0]} is missing; get commit {photos.commit[:7]} of github.com/'
            f'{photos.source} and run python -m experiments.photos.convert {photos.name} '
            f'REPOSITORY {directory}, or name the directory with --data.'
        )
