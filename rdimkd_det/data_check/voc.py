"""VOC annotations, one XML file for each image, as MMDetection's ``XMLDataset`` reads them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

import numpy as np
from mmengine.fileio import list_from_file

from ..errors import ConfigError
from ..options import listed
from .annotated_set import BY_NAME, AnnotatedSet, data_folder, kept_images
from .findings import Finding

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class UnreadableError(Exception):
    """An XML file cannot be loaded; the message says why."""


def load_voc(
    split: str, dataset: Mapping, path: str, classes: Sequence[str]
) -> tuple[AnnotatedSet, list[Finding]]:
    """Read the XML file of each image in a list, and return its boxes and what is wrong with it."""
    try:
        ids = list_from_file(path)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f'annotations {path} cannot be read, save it as UTF-8: {error}.'
        ) from error
    folder = data_folder(dataset, 'sub_data_root')
    xmls = [
        os.path.join(folder, dataset.get('ann_subdir', 'Annotations'), f'{it}.xml') for it in ids
    ]
    images = [
        os.path.join(folder, dataset.get('img_subdir', 'JPEGImages'), f'{it}.jpg') for it in ids
    ]
    sizes, boxes, places, names, crowds, unreadable = [], [], [], [], [], []
    for place, xml in enumerate(xmls):
        try:
            size, objects = read_xml(xml, classes)
        except UnreadableError as error:
            unreadable.append((xml, str(error)))
            size, objects = (np.nan, np.nan), []
        sizes.append(size)
        for name, box, difficult in objects:
            boxes.append(box)
            places.append(place)
            names.append(name)
            crowds.append(difficult)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in names], np.int64)
    image_index = np.array(places, np.int64)
    array_of_sizes = np.array(sizes, float).reshape(-1, 2)
    losses = np.where(labels < 0, BY_NAME['other class'], 0)
    losses[(losses == 0) & np.array(crowds, bool)] = BY_NAME['difficult']
    array_of_boxes = np.array(boxes, float).reshape(-1, 4)
    filters = dataset.get('filter_cfg') or {}
    small = array_of_boxes[:, 2:].min(1, initial=np.inf) < (filters.get('bbox_min_size') or 0)
    losses[(losses == 0) & small] = BY_NAME['small box']
    kept = kept_images(dataset, array_of_sizes, image_index[labels >= 0])
    losses[(losses == 0) & ~kept[image_index]] = BY_NAME['small image']
    data = AnnotatedSet(
        split=split, path=path, classes=classes, labelled=list(classes), image_ids=ids,
        image_paths=images, sizes=array_of_sizes, loaded=kept,
        boxes=array_of_boxes, image_index=image_index, labels=labels,
        losses=losses, hints=_hints(names, classes),
        example=lambda index: f'{names[index]!r} in {xmls[image_index[index]]}',
    )  # fmt: skip
    return data, [*_unreadable(split, path, unreadable, len(ids)), *_without_area(data)]


def read_xml(
    path: str, classes: Sequence[str]
) -> tuple[tuple[float, float], list[tuple[str, list[float], bool]]]:
    """Return width and height, NaN if unknown, and name, box and difficulty of each object.

    Of an object of another class loading reads the name only, so its box is NaN.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UnreadableError(f'cannot be read ({error.strerror})') from error
    except ElementTree.ParseError as error:
        raise UnreadableError(f'is damaged or empty ({error})') from error
    size = root.find('size')
    width = height = np.nan
    if size is not None:
        width, height = (_number(size, key, int) for key in ('width', 'height'))
    objects = []
    for entry in root.findall('object'):
        name, box = entry.find('name'), entry.find('bndbox')
        if name is not None and name.text not in classes:
            objects.append((name.text, [np.nan] * 4, False))
            continue
        missing = 'name' if name is None else 'bndbox' if box is None else None
        if missing:
            raise UnreadableError(f'has an object without <{missing}>')
        x1, y1, x2, y2 = (int(_number(box, key, float)) for key in CORNERS)
        difficult = entry.find('difficult') is not None and _number(entry, 'difficult', int)
        objects.append((name.text, [x1 - 1, y1 - 1, x2 - x1, y2 - y1], bool(difficult)))
    return (width, height), objects


def _number(entry: ElementTree.Element, key: str, kind: type) -> float:
    found = entry.find(key)
    if found is None:
        raise UnreadableError(f'has a <{entry.tag}> without <{key}>')
    try:
        return kind(found.text)
    except (TypeError, ValueError):
        what = 'a whole number' if kind is int else 'a number'
        raise UnreadableError(f'has {found.text!r} as <{key}>, which must be {what}') from None


def _hints(names: Sequence, classes: Sequence[str]) -> dict[str, tuple[str, str]]:
    others = Counter(name for name in names if name not in classes)
    common = [repr(name) for name, _ in others.most_common(10)]
    text = f'(their names: {listed(common, 10)})'
    return {'other class': (text, 'write metainfo.classes as the names in the XML files')}


def _unreadable(split: str, path: str, found: list, total: int) -> Iterator[Finding]:
    if found:
        xml, why = found[0]
        more = f' ({len(found)} of {total} such files)' if len(found) > 1 else ''
        yield Finding(
            'error', 'Boxes', split, path,
            f'annotations {xml} of {path}: the file {why}{more}',
            f'repair it, or take the image out of {path}', len(found), total, xml,
        )  # fmt: skip


def _without_area(data: AnnotatedSet) -> Iterator[Finding]:
    flat = ((data.boxes[:, 2] <= 0) | (data.boxes[:, 3] <= 0)) & data.objects
    count = int(flat.sum())
    if count:
        example = data.example(int(flat.argmax()))
        yield Finding(
            'error' if count == data.objects.sum() and data.split == 'train' else 'warning',
            'Boxes', data.split, data.path,
            f'{count} of {len(flat)} boxes of {data.path} have xmax <= xmin or ymax <= ymin, and '
            f'are loaded without an area, e.g. {example}',
            'write the corners of the boxes in pixels, xmin < xmax and ymin < ymax',
            count, len(flat), example,
        )  # fmt: skip
