"""What a COCO evaluator needs of its annotation file, before an epoch is spent."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .annotated_set import AnnotatedSet
from .coco_file import CocoFile
from .findings import Finding, first_double


def check_needs(split: str, file: CocoFile, classes: Sequence[str]) -> Iterator[Finding]:
    """Yield what pycocotools would stop at, or count wrongly, in the annotations it compares."""
    wanted = set(classes)
    selected = np.append([name in wanted for name in file.names], False).astype(bool)
    compared = selected[file.category_index] & (file.image_index >= 0)
    entries = [file.annotations[n] for n in compared.nonzero()[0]]
    for key, is_right, remedy in NEEDS:
        wrong = [entry for entry in entries if not is_right(entry.get(key))]
        if wrong:
            has = (
                f'have {key}={wrong[0][key]!r} in what the evaluator reads'
                if key in wrong[0]
                else f'lack {key!r}'
            )
            yield Finding(
                'error', 'Evaluator', split, file.path,
                f'{len(wrong)} of {len(entries)} annotations of {file.path} {has}, which the '
                f'evaluator needs, e.g. {reprlib.repr(wrong[0])}',
                remedy, len(wrong), len(entries), reprlib.repr(wrong[0]),
            )  # fmt: skip
            return
    if not (compared & ~file.crowd & (np.nan_to_num(file.areas) >= 0)).any():
        yield _no_object(split, file, selected)
    zero = [entry for entry in entries if entry['id'] == 0 and not entry.get('iscrowd')]
    if zero:
        yield Finding(
            'ok', 'Evaluator', split, file.path,
            f'an annotation of {file.path} has id 0: pycocotools never counts it as found, which '
            f'lowers the AP by the share of this one object; number annotations from 1',
            count=1, total=len(entries), example=reprlib.repr(zero[0]),
        )  # fmt: skip


def _is_flag(value: object) -> bool:
    """Return whether pycocotools can convert a value of iscrowd, into 8 bits."""
    try:
        return 0 <= int(value) < 256
    except (TypeError, ValueError, OverflowError):
        return False


def _is_area(value: object) -> bool:
    """Return whether pycocotools compares an object of this area; it ignores larger ones."""
    return isinstance(value, (int, float)) and value <= 1e10


def _is_id(value: object) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


# Keys that pycocotools reads, and whether it takes a value: numbers as text, too, but for an area.
NEEDS: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ('iscrowd', _is_flag, 'write iscrowd: 0 in each annotation of a single object, and 1 in those '
                          'of crowds'),
    ('area', _is_area, 'write area as a number of pixels'),
    ('id', _is_id, 'number the annotations from 1'),
)  # fmt: skip


def check_ids(split: str, file: CocoFile, reader: str) -> Iterator[Finding]:
    """Yield ids that annotations or images of a file share.

    Loading refuses two annotations of one id, and the evaluator knows the last one only; both know
    the last image of an id only.
    """
    ids = file.column('annotations', 'id')
    doubles = len(ids) - len(set(ids))
    if doubles:
        first = first_double(ids)
        yield Finding(
            'error', reader, split, file.path,
            f'{doubles} annotations of {file.path} have the id of another one, e.g. {first!r}',
            'number the annotations from 1', doubles, len(ids), repr(first),
        )  # fmt: skip
    entries, images = len(file.image_entries), len(file.images)
    if entries > images:
        first = first_double(entry['id'] for entry in file.image_entries)
        names = [str(it.get('file_name')) for it in file.image_entries if it['id'] == first]
        yield Finding(
            'error' if images <= entries / 2 and len(set(names)) > 1 else 'warning', 'Images',
            split, file.path,
            f'{entries} images of {file.path} have {images} ids, e.g. {first!r} for '
            f'{" and ".join(names[:2])}: only the last image of an id is used, with the boxes of '
            f'all',
            'give each image an id of its own', entries - images, entries, repr(first),
        )  # fmt: skip


def _no_object(split: str, file: CocoFile, selected: np.ndarray) -> Finding:
    total = len(file.annotations)
    reasons = {
        'it has no annotation': not total,
        'their image_id is that of no image': (file.image_index < 0).all(),
        'their category_id is that of no category': (file.category_index < 0).all(),
        'their categories are not among the classes': ~selected[file.category_index].any(),
        'they are all crowds': file.crowd.all(),
    }
    why = next((reason for reason, is_so in reasons.items() if is_so), 'none can be compared')
    example = ''
    if total:
        entry = file.annotations[0]
        ids = {'image_id': file.image_ids, 'category_id': file.category_ids}
        example = next(
            (f' ({key} is {entry[key]!r}, the ids are {known[0]!r}, ...)'
             for key, known in ids.items() if key in why and known), ''
        )  # fmt: skip
        if 'crowds' in why:
            example = f' (iscrowd={entry.get("iscrowd")!r})'
    return Finding(
        'error', 'Evaluator', split, file.path,
        f'the evaluator finds no object among the {total} annotations of {file.path}, and its AP '
        f'would be -1: {why}{example}',
        'write image_id, category_id and iscrowd as numbers, the ids as those of the images and '
        'categories' if total else 'give the file with the annotations',
        total, total, example,
    )  # fmt: skip


def check_images(
    split: str, sets: Sequence[AnnotatedSet], file: CocoFile, format_only: bool
) -> Iterator[Finding]:
    """Yield how the images of a split's data sets and of its evaluator differ."""
    names = {}
    for each in sets:
        for place in each.loaded.nonzero()[0]:
            names[each.image_ids[place]] = each.image_paths[place].rsplit('/', 1)[-1]
    paths = ', '.join(dict.fromkeys(each.path for each in sets))
    unknown = [key for key in names if key not in file.images]
    cure = f'set {split}_evaluator.ann_file={paths}' if len(sets) == 1 else (
        'give the evaluator a file with the images of all data sets')  # fmt: skip
    if unknown:
        alike = {str(key): key for key in file.image_ids}.get(str(unknown[0]))
        also = f' (there it is {alike!r})' if alike is not None else ''
        yield Finding(
            'error', 'Evaluator', split, file.path,
            f'{len(unknown)} of the {len(names)} images of {paths} are not in the evaluator\'s '
            f'{file.path}, e.g. id {unknown[0]!r}{also}, and it would stop at them',
            cure, len(unknown), len(names), repr(unknown[0]),
        )  # fmt: skip
        return
    others = [
        key for key, name in names.items()
        if Path(str(file.images[key].get('file_name', name))).stem != Path(name).stem
    ]  # fmt: skip
    if others:
        key = others[0]
        yield Finding(
            'error', 'Evaluator', split, file.path,
            f'{len(others)} of {len(names)} images have one id and two files: id {key!r} is '
            f'{names[key]} in {paths} and {file.images[key]["file_name"]} in the evaluator\'s '
            f'{file.path}',
            cure, len(others), len(names), repr(key),
        )  # fmt: skip
    annotated = np.unique(file.image_index[file.image_index >= 0])
    more = [file.image_ids[n] for n in annotated if file.image_ids[n] not in names]
    if more and not format_only:
        yield Finding(
            'warning', 'Evaluator', split, file.path,
            f'{len(more)} annotated images of the evaluator\'s {file.path} are not loaded from '
            f'{paths}, e.g. id {more[0]!r}: all their objects count as missed, and lower the AP',
            cure, len(more), len(file.images), repr(more[0]),
        )  # fmt: skip
