"""Makes the digits data set: images and annotations, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from rdimkd_det.errors import ConfigError
from rdimkd_det.progress import counting_bar

from .images import SPLITS, VERSION, DigitsOptions, compose, load_sources, require

DESCRIPTION = 'rdimkd_det digits: handwritten digits of scikit-learn, composed for detection'


def prepare_digits(directory: Path, options: DigitsOptions, console: Console) -> None:
    """Make the data set unless it exists, with a progress bar.

    Args:
        directory (Path): Directory of the data set.
        options (DigitsOptions): Options of the data set.
        console (Console): Where to show the bar.
    """
    total, shown = options.num_train + options.num_val, not is_made(directory, options)
    with counting_bar('making digits', total, console, shown) as advance:
        make_digits(directory, options, on_image=advance)


def make_digits(
    out_dir: str | Path,
    options: DigitsOptions | None = None,
    force: bool = False,
    on_image: Callable[[], None] | None = None,
) -> Path:
    """Make the data set, unless it exists with the same options.

    The files are written next to ``out_dir`` and moved there when complete.

    Args:
        out_dir (str | Path): Where ``train/``, ``val/`` and ``annotations/`` go.
        options (DigitsOptions, optional): Options of the data set. Defaults to ``DigitsOptions()``.
        force (bool): Whether to replace a digits data set of other options. Defaults to False.
        on_image (Callable, optional): Called after each image. Defaults to None.

    Returns:
        Path: The directory of the data set.

    Raises:
        ConfigError: ``out_dir`` cannot be written, holds something else, or holds a digits data set
            of other options and ``force`` is False.

    Example:
        >>> import tempfile
        >>> options = DigitsOptions(num_train=2, num_val=1)
        >>> out = make_digits(tempfile.mkdtemp() + '/digits', options)
        >>> sorted(path.name for path in out.iterdir())
        ['annotations', 'train', 'val']
    """
    options = options or DigitsOptions()
    target = Path(out_dir).resolve()  # a link is followed, not replaced
    # The host name is part of the prefix because a process id is valid on its own host only.
    prefix = f'.{target.name}.making-{socket.gethostname()}-'
    work = target.parent / f'{prefix}{os.getpid()}'
    try:
        _remove_stale(target.parent, prefix)
        if is_made(target, options):
            return target
        _check_target(target, force)
        (work / 'new' / 'annotations').mkdir(parents=True)
        _write_splits(work / 'new', options, on_image)
        _move_in(work, target)
    except OSError as error:
        raise ConfigError(f'cannot write {target}: {error.strerror or error}.') from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def is_made(out_dir: str | Path, options: DigitsOptions) -> bool:
    """Check whether a complete data set of this version with these options exists."""
    info = _read_info(Path(out_dir))
    return (
        info.get('version') == VERSION
        and info.get('options') == json.loads(json.dumps(asdict(options)))
        and all(_num_images(Path(out_dir) / split) == _count(options, split) for split in SPLITS)
    )


def _write_splits(root: Path, options: DigitsOptions, on_image: Callable | None) -> None:
    sources = load_sources(options.seed)
    for split in SPLITS:
        (root / split).mkdir()
        coco = _empty_coco(options)
        for index in range(_count(options, split)):
            image, placed = compose(split, index, sources, options)
            name = f'{index + 1:06d}.png'
            (root / split / name).write_bytes(cv2.imencode('.png', image)[1].tobytes())
            _add_to_coco(coco, name, options.image_size, placed, sources[1])
            if on_image is not None:
                on_image()
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))


def _empty_coco(options: DigitsOptions) -> dict:
    return {
        'info': {
            'description': DESCRIPTION,
            'version': VERSION,
            'seed': options.seed,
            'options': asdict(options),
        },
        'images': [],
        'annotations': [],
        'categories': [{'id': label + 1, 'name': str(label)} for label in range(10)],
    }


def _add_to_coco(
    coco: dict, name: str, size: tuple[int, int], placed: list, labels: np.ndarray
) -> None:
    image_id = len(coco['images']) + 1
    coco['images'].append({'id': image_id, 'file_name': name, 'width': size[0], 'height': size[1]})
    for source, box in placed:
        coco['annotations'].append(
            {
                'id': len(coco['annotations']) + 1,
                'image_id': image_id,
                'category_id': int(labels[source]) + 1,
                'bbox': list(box),
                'area': box[2] * box[3],
                'iscrowd': 0,
                'source': source,  # index of the digit in scikit-learn's data set
            }
        )


def _count(options: DigitsOptions, split: str) -> int:
    return getattr(options, f'num_{split}')


def _num_images(folder: Path) -> int:
    return sum(1 for _ in folder.glob('*.png'))


def _read_info(target: Path) -> dict:
    """Read the info of a digits data set; {} if there is none."""
    try:
        infos = [
            json.loads((target / 'annotations' / f'{split}.json').read_text())['info']
            for split in SPLITS
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return infos[0] if infos[0] == infos[1] and infos[0]['description'] == DESCRIPTION else {}


def _check_target(target: Path, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    # Never delete anything but a digits data set, even with ``force``.
    require(
        bool(_read_info(target)),
        f'{target} exists and is not a digits data set; choose another place.',
    )
    require(
        force,
        f'{target} holds digits made with other options, or incomplete; --force replaces them.',
    )


def _remove_stale(parent: Path, prefix: str) -> None:
    """Remove folders left by processes of this host that have died."""
    for path in parent.iterdir() if parent.is_dir() else ():
        pid = path.name[len(prefix) :] if path.name.startswith(prefix) else ''
        if pid.isdigit() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _move_in(work: Path, target: Path) -> None:
    old = work / 'old'
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(work / 'new', target)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
