"""What is told about the boxes of a data set: lost ones, their geometry, classes without any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..options import listed
from .annotated_set import BY_NAME, LOSSES, AnnotatedSet, Loss
from .findings import Finding

# Share of boxes that may be lost, or there twice, without a word: COCO's own files have a few.
FEW = 1e-3
# Share of boxes that may be lost on purpose, as crowds and in small images.
MANY = 0.1
# Number of boxes from which a form that all of them share is no chance.
ENOUGH = 8
SHOWN = 10


def check_boxes(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """Yield what is to be told about the boxes of a split's data sets."""
    any_object = any(each.objects.any() for each in sets)
    for each in sets:
        geometry = list(_check_geometry(each))
        yield from geometry
        if any(finding.severity == 'error' for finding in geometry):
            continue
        yield from _check_losses(each, any_object)
        yield from _check_repeated(each)
    yield from _check_classes(sets)


def _check_losses(data: AnnotatedSet, any_object: bool) -> Iterator[Finding]:
    total, lost = len(data.losses), data.lost
    objects = int(data.objects.sum())
    trains = data.split == 'train'
    if not total:
        if trains and not (any_object and data.loaded.any()):  # else they are to hold no objects
            yield Finding(
                'warning' if any_object else 'error', 'Boxes', data.split, data.path,
                f'no annotation in {data.path}',
                'see whether it is the right file, and has the list annotations',
            )  # fmt: skip
        return
    wrong = [n for n in lost if not _loss(n).intended]
    if not objects:
        severity = 'error' if trains and not any_object else 'warning'
        text = f'all {total} boxes of {data.path} are lost'
        yield _told(severity, data, lost, text, wrong or lost)
        return
    few = sum(lost[n] for n in wrong) <= FEW * total
    usual = ('other class', 'difficult')
    many = [n for n in lost if n not in (*usual, *wrong) and lost[n] > MANY * total]
    told = [*([] if few else wrong), *many]
    if told:
        shown = {name: lost[name] for name in told}
        number = sum(shown.values())
        text = f'{number} of {total} boxes of {data.path} are lost'
        yield _told('warning', data, shown, text, told)
        return
    images = f'{data.summary().num_with_objects} of {data.loaded.sum()} images of {data.path}'
    parts = ', '.join(f'{name} {number}' for name, number in lost.items())
    text = f'{objects} objects in {images}' + f'; of {total} boxes, not used: {parts}' * bool(parts)
    yield Finding('ok', 'Boxes', data.split, data.path, text, count=objects, total=total)


def _told(
    severity: str, data: AnnotatedSet, lost: dict[str, int], text: str, wrong: Iterable[str]
) -> Finding:
    """Describe losses; the remedy follows from the most frequent one that is no choice."""
    hints = {name: data.hints.get(name, ('', '')) for name in lost}
    names = sorted(lost, key=lambda name: -lost[name])
    parts = [f'{lost[name]} {_loss(name).text} {hints[name][0]}'.rstrip() for name in names]
    parts[0] += f', e.g. {data.first_lost(names[0])}'
    main = max(wrong, key=lost.get)
    remedy = hints[main][1] or _loss(main).remedy
    if main == 'other class':
        remedy = f'{remedy}: the classes are {listed(data.classes, SHOWN)}'
    return Finding(
        severity, 'Boxes', data.split, data.path, f'{text}: {"; ".join(parts)}', remedy,
        sum(lost.values()), len(data.losses), data.first_lost(main),
    )  # fmt: skip


def _loss(name: str) -> Loss:
    return LOSSES[BY_NAME[name]]


def _check_geometry(data: AnnotatedSet) -> Iterator[Finding]:
    """Tell shares of the image instead of pixels, corners instead of sizes, boxes beyond it."""
    known = (data.image_index >= 0) & np.isfinite(data.boxes).all(1)
    x, y, w, h = data.boxes[known].T
    sizes = data.sizes[data.image_index[known]]
    number = len(x)
    if not number:
        return
    places = known.nonzero()[0]
    in_shares = (w > 0) & (h > 0) & (np.maximum(w, h) <= 1) & (np.abs(x) <= 1) & (np.abs(y) <= 1)
    in_shares &= sizes.min(1) > 8
    count = int(in_shares.sum())
    if count == number or (number >= ENOUGH and count >= 0.99 * number):
        example = data.example(int(places[in_shares.argmax()]))
        yield Finding(
            'error', 'Boxes', data.split, data.path,
            f'the boxes of {data.path} are shares of the image, not pixels: {count} of {number} '
            f'lie within 0 and 1, e.g. {example}',
            'multiply x and width by the width of the image, y and height by its height',
            count, number, example,
        )  # fmt: skip
        return
    slack = np.maximum(1, 0.01 * sizes)
    (left, top), (right, bottom) = -slack.T, (sizes + slack).T
    beyond = (x < left) | (y < top) | (x + w > right) | (y + h > bottom)
    count = int(beyond.sum())
    if count <= MANY * number:
        return
    example = data.example(int(places[beyond.argmax()]))
    # Right boxes are as often wider than their x as not.
    corners = (w > x) & (h > y) & (w <= right) & (h <= bottom)
    if number >= ENOUGH and corners.mean() >= 0.99:
        yield Finding(
            'error', 'Boxes', data.split, data.path,
            f'the boxes of {data.path} seem to be corners, [x1, y1, x2, y2]: {count} of {number} '
            f'reach beyond their image as [x, y, width, height], and none as corners, e.g. '
            f'{example}',
            'write bbox as [x1, y1, x2 - x1, y2 - y1]',
            count, number, example,
        )  # fmt: skip
        return
    yield Finding(
        'warning', 'Boxes', data.split, data.path,
        f'{count} of {number} boxes of {data.path} reach beyond their image, e.g. {example}',
        'compare bbox ([x, y, width, height] in pixels) with width and height of the images',
        count, number, example,
    )  # fmt: skip


def _check_repeated(data: AnnotatedSet) -> Iterator[Finding]:
    """Tell objects that are there several times, as after merging two exports of the same data."""
    objects = data.objects.nonzero()[0]
    facts = np.stack([data.image_index, data.labels, *data.boxes.T])[:, objects]
    # Equal objects have equal sums: sorting these takes a third of the time of sorting by all six.
    sums = (facts * np.sqrt([[2], [3], [5], [7], [11], [13]])).sum(0)
    order = sums.argsort(kind='stable')  # of equal ones the first in the file comes first
    repeated = order[1:][(facts[:, order[1:]] == facts[:, order[:-1]]).all(0)]
    count, total = len(repeated), len(objects)
    if count <= FEW * total:
        return
    example = data.example(int(objects[repeated.min()]))
    yield Finding(
        'warning', 'Boxes', data.split, data.path,
        f'{count} of {total} objects of {data.path} repeat another one: the same image, class and '
        f'box, e.g. {example}',
        'keep one annotation of each; each copy counts as an object of its own in losses and AP',
        count, total, example,
    )  # fmt: skip


def _check_classes(sets: Sequence[AnnotatedSet]) -> Iterator[Finding]:
    """Tell classes without an object in all training files, which cannot be learned."""
    numbers = Counter()
    for each in sets:
        numbers.update(each.objects_by_class)
    without = [name for name, number in numbers.items() if not number]
    if not without or len(without) == len(numbers) or sets[0].split != 'train':
        return
    files = listed(list(dict.fromkeys(each.path for each in sets)))
    yield Finding(
        'warning', 'Classes', 'train', sets[0].path,
        f'no object of {listed(without, SHOWN)} in {files}',
        'take these out of metainfo.classes, or see why their boxes are missing',
        len(without), len(numbers), without[0],
    )  # fmt: skip
