"""Class names of data sets, compared with the categories of their files, and the files' order.

MMDetection's ``CocoDataset`` silently drops the classes that are not categories, and labels the
others in the order of the file; so does the evaluator with its own file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..options import did_you_mean, listed
from .findings import Finding

SHOWN = 10


@dataclass(frozen=True)
class Naming:
    """The class names of a data set, and the categories of an annotation file."""

    split: str
    path: str
    classes: tuple[str, ...]
    categories: list  # names, in the order of the file
    ids: list = field(default_factory=list)
    reader: str = 'data set'  # or 'evaluator'

    # Files have thousands of categories (LVIS): nothing here is quadratic.
    @cached_property
    def missing(self) -> list[str]:
        """The classes that are not categories, in their order."""
        known = set(self.categories)
        return [name for name in self.classes if name not in known]

    @cached_property
    def labelled(self) -> tuple[str, ...]:
        """The classes that are categories, in the order of their labels."""
        wanted = set(self.classes)
        return tuple(name for name in self.categories if name in wanted)

    @property
    def hint(self) -> str:
        """A likely category for a missing class, e.g. a name that differs in case or a space."""
        others = {_plain(name): name for name in self.categories}
        for name in self.missing:
            other = others.get(_plain(name))
            if other is not None and str(other) != str(name):
                return f"; did you mean '{other}'?"
            if other is not None:
                kinds = ' and '.join(type(it).__name__ for it in (name, other))
                return f' ({name!r} and {other!r} are of two types, {kinds})'
        return did_you_mean(self.missing[0], map(str, self.categories))

    def shown(self, names: Sequence) -> str:
        """Return names as text, such that names that look alike can be told apart."""
        texts = [*map(str, self.classes), *map(str, self.categories)]
        alike = len(set(texts)) < len({*self.classes, *self.categories})
        if alike or any(text != text.strip() for text in texts):
            return listed([*map(repr, names)], SHOWN)
        return listed(names, SHOWN)


def _plain(name: object) -> str:
    return re.sub(r'[\W_]+', '', str(name)).casefold()


def check_names(namings: Sequence[Naming]) -> Iterator[Finding]:
    """Yield what is wrong with the names in the files of one split, each file by itself."""
    none = not any(naming.labelled for naming in namings)
    for naming in namings:
        doubles = list(_check_doubles(naming))
        yield from doubles
        if none:
            yield _no_category(naming)
            return
        if naming.missing and not doubles:
            yield _missing(naming)


def _check_doubles(naming: Naming) -> Iterator[Finding]:
    """Yield labels beyond the head, because of names or ids that occur twice."""
    classes, file = naming.classes, naming.path
    for name, number in Counter(classes).items():
        if number > 1:
            yield Finding(
                'error', 'Classes', naming.split, file,
                f'metainfo.classes has {name!r} {number} times',
                'name each class once', number, len(classes), str(name),
            )  # fmt: skip
    ids = naming.ids or [None] * len(naming.categories)
    wanted = set(classes)
    pairs = [pair for pair in zip(naming.categories, ids) if pair[0] in wanted]
    for name, number in Counter(name for name, _ in pairs).items():
        if number > 1:
            yield _double_name(naming, name, [key for other, key in pairs if other == name])
            return
    for key, number in Counter(key for _, key in pairs if key is not None).items():
        if number > 1:
            names = [name for name, other in pairs if other == key]
            yield Finding(
                'error', 'Classes', naming.split, file,
                f'the categories {" and ".join(map(repr, names))} of {file} have the same id, '
                f'{key!r}',
                'give each category an id of its own, in the annotations too',
                len(names), len(pairs), repr(key),
            )  # fmt: skip
            return


def _double_name(naming: Naming, name: str, ids: list) -> Finding:
    given = f' (ids {" and ".join(map(repr, ids))})' if ids[0] is not None else ''
    labels = len(naming.labelled)
    return Finding(
        'error', 'Classes', naming.split, naming.path,
        f'{len(ids)} categories of {naming.path} are named {name!r}{given}: MMDetection gives them '
        f'a label each, {labels} labels for {len(set(naming.classes))} classes, and the last ones '
        f'are beyond the head, or its background',
        f'give all annotations of {name!r} one of these ids and remove the other category, or '
        f'rename one',
        len(ids), len(naming.categories), repr(name),
    )  # fmt: skip


def _no_category(naming: Naming) -> Finding:
    classes, categories = naming.shown(naming.classes), naming.shown(naming.categories)
    remedy = (
        f'write the names in {naming.split}_dataloader.dataset.metainfo.classes as they are in '
        f'the file'
    )
    if any(not isinstance(name, str) for name in naming.categories) and 'two types' in naming.hint:
        remedy = 'write the names of the categories in the file as text'
    return Finding(
        'error', 'Classes', naming.split, naming.path,
        f'no class of the data set ({classes}) is a category of {naming.path} ({categories})'
        f'{naming.hint}',
        remedy, len(naming.missing), len(naming.classes), naming.shown(naming.missing[:1]),
    )  # fmt: skip


def _missing(naming: Naming) -> Finding:
    missing = naming.shown(naming.missing)
    text = (
        f'{missing}: not among the categories of {naming.path} '
        f'({naming.shown(naming.categories)}){naming.hint}'
    )
    counts = len(naming.missing), len(naming.classes), naming.shown(naming.missing[:1])
    if naming.reader == 'evaluator':
        return Finding(
            'error', 'Evaluator', naming.split, naming.path,
            f'{text}; the evaluator has no place for detections of label '
            f'{len(naming.labelled)} and above, and would end in an IndexError',
            'write all classes as categories of that file, in the order of the training data',
            *counts,
        )  # fmt: skip
    return Finding(
        'warning', 'Classes', naming.split, naming.path, text,
        'write metainfo.classes as in the file: MMDetection drops the boxes of a class that is '
        'missing there, and shifts the labels of the classes after it',
        *counts,
    )  # fmt: skip


def check_orders(namings: Sequence[Naming], trained: Naming | None) -> Iterator[Finding]:
    """Yield files whose labels mean other classes than those of the first training file."""
    namings = [naming for naming in namings if naming.labelled]
    conflicts = [naming for naming in namings if trained and _differing(naming, trained)]
    for naming in conflicts:
        label, here, there = _differing(naming, trained)
        effect = 'the AP would be that of permuted labels'
        if naming.split == 'train':
            effect = 'one class is trained with two labels'
        yield Finding(
            'error', 'Classes' if naming.reader == 'data set' else 'Evaluator', naming.split,
            naming.path,
            f'label {label} is {here!r} in {naming.path} and {there!r} in {trained.path}: labels '
            f'follow the order of the categories in each file, whatever metainfo.classes says, so '
            f'that {effect}',
            _agreement(naming, trained),
            1, len(naming.labelled), repr(here),
        )  # fmt: skip
    told = set()
    for naming in namings:
        missing = set(naming.missing)
        wanted = tuple(name for name in naming.classes if name not in missing)
        of_data = naming.reader == 'data set' and naming not in conflicts
        if not of_data or naming.labelled == wanted or naming.path in told:
            continue
        if len(set(naming.labelled)) < len(naming.labelled):
            continue  # a name that occurs twice is told by itself
        told.add(naming.path)
        classes, categories = naming.shown(naming.classes), naming.shown(naming.categories)
        yield Finding(
            'warning', 'Classes', naming.split, naming.path,
            f'the data set has {classes}, and {naming.path} {categories}: in another order',
            _cure(naming, trained), 1, len(naming.labelled), repr(naming.labelled[0]),
        )  # fmt: skip


def _agreement(naming: Naming, trained: Naming) -> str:
    if set(naming.labelled) != set(trained.labelled):
        return (
            f'give {naming.split} and train the same metainfo.classes, and both files all of '
            f'these as categories'
        )
    return (
        f'write the categories of {naming.path} in the order of {trained.path} (their ids stay): '
        f'{trained.shown(trained.labelled)}'
    )


def _cure(naming: Naming, trained: Naming | None) -> str:
    if trained is None:
        return (
            'write the categories of the file in the order of the file that the detector was '
            'trained on: labels follow the file, and in another order the AP is that of permuted '
            'labels'
        )
    return (
        f'set metainfo.classes={naming.labelled} in all data sets: labels follow the file, and '
        f'each class would be called by the name of another'
    )


def _differing(naming: Naming, trained: Naming) -> tuple[int, str, str] | None:
    """Return the first label whose class differs in two files, with both classes."""
    pairs = enumerate(zip(naming.labelled, trained.labelled))
    return next(((label, here, there) for label, (here, there) in pairs if here != there), None)
