"""What MMDetection's ``CocoDataset`` makes of a file: the rules of its loading, over arrays.

The reasons for which a box is lost are those of ``parse_data_info`` and ``filter_data`` (mmdet
3.3.0, OneDL 3.5.1).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from .annotated_set import BY_NAME, AnnotatedSet, data_folder, kept_images
from .coco_file import CocoFile


def load_coco(split: str, dataset: Mapping, file: CocoFile, classes: Sequence[str]) -> AnnotatedSet:
    """Return the boxes of a COCO file as a data set of a config loads them."""
    wanted = set(classes)
    selected = [name in wanted for name in file.names]
    labels = _labels(file, selected)
    losses = _losses(file, labels)
    # MMDetection keeps an image for any annotation of a class, also for one that it drops.
    loaded = kept_images(dataset, file.sizes, file.image_index[labels >= 0])
    losses[(losses == 0) & ~np.append(loaded, True)[file.image_index]] = BY_NAME['small image']
    prefix = data_folder(dataset, 'img')
    return AnnotatedSet(
        split=split,
        path=file.path,
        classes=classes,
        labelled=[name for name, wanted in zip(file.names, selected) if wanted],
        image_ids=file.image_ids,
        image_paths=[os.path.join(prefix, str(it['file_name'])) for it in file.images.values()],
        sizes=file.sizes,
        loaded=loaded,
        boxes=file.boxes,
        image_index=file.image_index,
        labels=labels,
        losses=losses,
        example=lambda index: describe(file, index),
        hints=_hints(file, losses),
    )


def describe(file: CocoFile, index: int) -> str:
    """Return what a reader needs to find an annotation."""
    entry = file.annotations[index]
    place = file.image_index[index]
    keys = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')
    text = ', '.join(f'{key}={entry[key]!r}' for key in keys if key in entry)
    image = f', of {file.images[file.image_ids[place]]["file_name"]}' if place >= 0 else ''
    return f'annotation {text}{image}'


def _labels(file: CocoFile, selected: list[bool]) -> np.ndarray:
    labels = np.cumsum(selected) - 1 if selected else np.zeros(0, int)
    labels = np.where(selected, labels, -1).astype(np.int64)
    labels = np.append(labels, -1)  # of a category that is not there, whose place is -1
    return labels[file.category_index]


def _losses(file: CocoFile, labels: np.ndarray) -> np.ndarray:
    if not len(file.annotations):
        return np.zeros(0, np.int64)
    with np.errstate(invalid='ignore'):
        x, y, w, h = file.boxes.T
        sizes = np.append(file.sizes, [[np.nan, np.nan]], axis=0)[file.image_index]
        inside_w = np.minimum(x + w, sizes[:, 0]) - np.maximum(x, 0)
        inside_h = np.minimum(y + h, sizes[:, 1]) - np.maximum(y, 0)
        reasons = {
            'no image': file.image_index < 0,
            "'ignore'": file.ignored,
            'not a number': ~np.isfinite(file.boxes).all(1),
            'below a pixel': (w < 1) | (h < 1),
            'outside': ~((inside_w > 0) & (inside_h > 0)),
            'area 0': file.areas <= 0,
            'no category': file.category_index < 0,
            'other class': labels < 0,
            'crowd': file.crowd,
        }
    return np.select(list(reasons.values()), [BY_NAME[name] for name in reasons], 0)


def _hints(file: CocoFile, losses: np.ndarray) -> dict[str, tuple[str, str]]:
    """Tell ids that are text in one list and numbers in the other, and normalised boxes."""
    hints = {}
    for name, key, ids in (
        ('no image', 'image_id', file.image_ids),
        ('no category', 'category_id', file.category_ids),
    ):
        places = (losses == BY_NAME[name]).nonzero()[0]
        alike = {str(value): value for value in ids} if len(places) else {}
        for place in places[:1000]:
            value = file.annotations[place][key]
            if str(value) in alike:
                what = key.removesuffix('_id')
                hints[name] = (
                    f'({key} is {value!r} where the {what} has id {alike[str(value)]!r})',
                    f'write the ids of the {"images" if what == "image" else "categories"} and '
                    f'{key} alike, both as numbers',
                )
                break
    crowds = (losses == BY_NAME['crowd']).nonzero()[0]
    value = file.annotations[crowds[0]]['iscrowd'] if len(crowds) else 1
    if isinstance(value, str):
        text = f'(iscrowd is the text {value!r}, which is true to Python)'
        hints['crowd'] = text, 'write iscrowd as the number 0'
    return hints
