"""Checks that the classes of a dataset are categories of its annotation file.

MMDetection's ``CocoDataset`` silently drops the classes that are not, and labels the others in the
order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mmdet.datasets import CocoDataset
from mmengine.config import Config

from ..errors import ConfigError
from ..files.annotations import category_names
from ..files.configs import annotation_path, leaf_datasets
from ..options import did_you_mean
from .classes import classes_of, dataset_type, listed
from .report import Report

SHOWN = 10


@dataclass(frozen=True)
class Naming:
    """The class names of a dataset, and the category names of its annotation file."""

    path: str
    classes: tuple[str, ...]
    categories: list  # in the order of the file

    @property
    def missing(self) -> list[str]:
        """The classes that are not categories, in their order."""
        return [name for name in self.classes if name not in self.categories]

    @property
    def hint(self) -> str:
        """A likely category for a missing class, e.g. a name that differs in case or a space."""
        others = {_plain(name): str(name) for name in self.categories}
        for name in self.missing:
            if _plain(name) in others:
                return f"; did you mean '{others[_plain(name)]}'?"
        return did_you_mean(self.missing[0], map(str, self.categories))

    @property
    def labelled(self) -> tuple[str, ...]:
        """The classes that are categories, in the order of their labels."""
        return tuple(name for name in self.categories if name in self.classes)


def _plain(name: object) -> str:
    return re.sub(r'[\W_]+', '', str(name)).casefold()


def namings(split: str, dataset: object) -> Iterator[Naming]:
    """Yield a :class:`Naming` for each dataset below the wrappers that reads a local COCO file."""
    for leaf in leaf_datasets(dataset):
        loads = getattr(dataset_type(leaf), 'load_data_list', None)
        path = annotation_path(leaf)
        if loads is not CocoDataset.load_data_list or path is None:
            continue
        classes, categories = classes_of(leaf, split), category_names(path)
        if classes and categories:
            yield Naming(path, classes, categories)


def check_any_category(split: str, dataset: object) -> None:
    """Check that at least one class of a dataset is a category of an annotation file.

    Otherwise all boxes would be dropped.
    """
    found = list(namings(split, dataset))
    if found and not any(naming.labelled for naming in found):
        naming = found[0]
        raise ConfigError(
            f'{split} data: no class of the data set ({listed(naming.classes, SHOWN)}) is a '
            f'category of {naming.path} ({listed(naming.categories, SHOWN)})'
            f'{naming.hint or "."} Write the names in {split}_dataloader.dataset.metainfo.classes '
            f'as they are in the file.'
        )


def check_categories(cfg: Config, report: Report) -> None:
    """Report classes that are not categories of their annotation file, or in another order."""
    for split in ('train', 'val'):
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        for naming in namings(split, dataset):
            _check_naming(naming, report)


def _check_naming(naming: Naming, report: Report) -> None:
    missing, categories = naming.missing, listed(naming.categories, SHOWN)
    labelled = naming.labelled
    if missing:
        report.warning(
            'Classes',
            f'{listed(missing, SHOWN)}: not among the categories of {naming.path} ({categories})'
            f'{naming.hint}',
            'write metainfo.classes as in the file: MMDetection drops the boxes of a class that is '
            'missing there, and shifts the labels of the classes after it',
        )
    elif labelled != naming.classes:
        report.warning(
            'Classes',
            f'the data set has {listed(naming.classes, SHOWN)}, and {naming.path} {categories}: '
            f'in another order',
            f'set metainfo.classes={labelled}: labels follow the file, and each class would be '
            f'called by the name of another',
        )
