"""Image files of a data set: whether they are there, and which are there twice."""

from __future__ import annotations

import filecmp
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from ..datasets.unlabelled import SUFFIXES
from ..files.configs import mappings, reads_local_files
from ..options import type_name
from .annotated_set import AnnotatedSet, Files, data_folder
from .findings import Finding, first_double

# How many folders of a data set's root are looked through for a missing image.
NUM_FOLDERS = 50


def loading_step(dataset: Mapping) -> Mapping | None:
    """Return the step of a pipeline that reads images from local files, or None."""
    for step in mappings(dataset.get('pipeline') or ()):
        if type_name(step).rpartition('.')[2] == 'LoadImageFromFile':
            return step if reads_local_files(step) else None
    return None


def check_files(data: AnnotatedSet, dataset: Mapping) -> Iterator[Finding]:
    """Yield images that are missing or empty, by one ``stat`` of each that is loaded."""
    step = loading_step(dataset)
    paths = [path for path, _ in data.files]
    if step is None or not paths or '://' in paths[0]:
        return
    missing = [path for path, found in data.files if found is None]
    empty = [path for path, found in data.files if found is not None and found.st_size == 0]
    of = f'{len(paths)} images of {data.path}'
    if len(missing) == len(paths):
        yield Finding(
            'error', 'Images', data.split, data.path,
            f'none of the {of} is there, e.g. {missing[0]}',
            _how_to_find(data, dataset, missing[0]),
            len(missing), len(paths), missing[0],
        )  # fmt: skip
        return
    # With ignore_empty another image takes the place of one that cannot be read.
    severity = 'warning' if step.get('ignore_empty') and data.split == 'train' else 'error'
    for what, found in (('missing', missing), ('empty files', empty)):
        if found:
            are = 'are' if len(found) > 1 else 'is'
            what = 'an empty file' if what == 'empty files' and len(found) == 1 else what
            alike = _named_alike([Path(found[0]).parent], found[0]) if found is missing else None
            yield Finding(
                severity, 'Images', data.split, data.path,
                f'{len(found)} of the {of} {are} {what}, e.g. {found[0]}',
                alike or 'put them there, or remove their entries from the annotations',
                len(found), len(paths), found[0],
            )  # fmt: skip


def check_names(data: AnnotatedSet) -> Iterator[Finding]:
    """Yield files that several entries name: each entry has a part of the boxes only."""
    files = [_file_id(*it) for it in data.files]
    doubles = len(files) - len(set(files))
    if not doubles:
        return
    first = data.files[files.index(first_double(files))][0]
    yield Finding(
        'warning', 'Images', data.split, data.path,
        f'{len(files)} images of {data.path} are {len(set(files))} files, e.g. {first} several '
        f'times: the objects of one entry are background in the others',
        'write one entry for each image, with all its annotations', doubles, len(files), first,
    )  # fmt: skip


def check_overlap(
    train_files: Mapping[str, Files], data: AnnotatedSet, thorough: bool
) -> Iterator[Finding]:
    """Yield the images of an evaluation that are trained on; copies of them only if ``thorough``.

    ``train_files`` are the images of each annotation file of the training.
    """
    if data.path in train_files:
        return  # who evaluates on the same annotations means to
    files = [it for each in train_files.values() for it in each]
    known = {_file_id(*it): it[0] for it in files}
    pairs = ((path, known.get(_file_id(path, found))) for path, found in data.files)
    same = {path: other for path, other in pairs if other}
    if thorough:
        same |= dict(_copies(files, data.files))
    if same:
        first, other = next(iter(same.items()))
        yield Finding(
            'warning', 'Images', data.split, data.path,
            f'{len(same)} of {len(data.files)} images of {data.path} are trained on, e.g. {first}'
            f'{f", which is a copy of {other}" * (first != other)}: AP shows what was memorised',
            'let each image be in one of the files only', len(same), len(data.files), first,
        )  # fmt: skip


def _file_id(path: str, found: os.stat_result | None) -> tuple[int, int] | str:
    """Return the same for all links to a file, and all ways through the folders to it."""
    return (found.st_dev, found.st_ino) if found and found.st_ino else path


def _copies(trained: Files, tested: Files) -> Iterator[tuple[str, str]]:
    """Yield the tested files whose content a trained file has, with the trained one."""
    sizes = ({found.st_size for _, found in files if found} for files in (trained, tested))
    both = set.intersection(*sizes) - {0}
    known = {_excerpt(*it): it[0] for it in trained if it[1] and it[1].st_size in both}
    for path, found in tested:
        other = known.get(_excerpt(path, found)) if found and found.st_size in both else None
        if other and filecmp.cmp(path, other, shallow=False):
            yield path, other


def _excerpt(path: str, found: os.stat_result) -> tuple[int, bytes] | str:
    """Return a file's size and bytes of its middle, where images differ; all need not be read."""
    try:
        with open(path, 'rb') as file:
            file.seek(found.st_size // 2)
            return found.st_size, file.read(4096)
    except OSError:
        return path  # it is named when it is loaded


def _how_to_find(data: AnnotatedSet, dataset: Mapping, path: str) -> str:
    """Return the remedy for a wrong folder: the one below the root that has the image, if any."""
    place = f'{data.split}_dataloader.dataset'
    root = Path(str(dataset.get('data_root') or Path(data.path).parent))
    prefixes = (data_folder(dataset, key) for key in ('img', 'sub_data_root'))
    name = min((os.path.relpath(path, prefix) for prefix in prefixes), key=len)  # with its folders
    if '\\' in name and os.sep == '/':
        return 'write file_name with / in place of \\ in the annotations'
    folders = [Path(it[0]) for it in islice(os.walk(root), NUM_FOLDERS)]
    found = next((folder for folder in folders if (folder / name).is_file()), None)
    remedy = f'set data_root and data_prefix of {place} to the folder of the images'
    if found is not None:
        return f'{remedy}, {found}'
    alike = _named_alike(folders, name)
    return f'{alike}, or {remedy}' if alike else remedy


def _named_alike(folders: Iterable[Path], path: str) -> str | None:
    """Return the remedy where a file differs in its ending, its folder, or how it is written."""
    name = _plain(path)
    files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
    images = (file for file in files if file.name.lower().endswith(SUFFIXES))
    found = next((file for file in images if _plain(file.name) == name and file.is_file()), None)
    return found and f'write file_name as the file is named there, e.g. {str(found)!r}'


def _plain(path: str) -> str:
    return unicodedata.normalize('NFC', Path(path).stem).casefold()
