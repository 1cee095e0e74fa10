"""Detection images in COCO format, composed of the real handwritten digits of scikit-learn.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels. Each image here shows a few of them,
enlarged, rotated and coloured, on a textured background with distractor lines.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import ConfigError
from .drawing import Box, add_digit, draw_background

VERSION = '1.0'  # raised when the same options give other images
DESCRIPTION = 'rdimkd_det digits: handwritten digits of scikit-learn, composed for detection'
SPLITS = ('train', 'val')
VAL_SHARE = 0.2  # of the handwritten digits
GROWTH = 1.3  # a digit's box is at most this factor larger than its size: rotation and soft edge
MAX_COVER = 0.4  # share of the image covered by the most digits at the smallest size
LAYOUT_TRIES = 20


@dataclass(frozen=True)
class DigitsOptions:
    """Options of a digits data set; equal options give byte-identical files.

    Args:
        image_size (tuple[int, int]): Width and height in pixels. Defaults to (96, 96).
        num_train (int): Number of training images. Defaults to 3000.
        num_val (int): Number of validation images. Defaults to 300.
        digits_per_image (tuple[int, int]): Fewest and most digits. Defaults to (1, 4).
        digit_size (tuple[int, int]): Smallest and largest side of a digit's square tile before
            rotation, in pixels. Defaults to (12, 44).
        seed (int): Seed of the images and of the split of the digits. Defaults to 0.

    Raises:
        ConfigError: An option is out of range, or the digits do not fit into the image.
    """

    image_size: tuple[int, int] = (96, 96)
    num_train: int = 3000
    num_val: int = 300
    digits_per_image: tuple[int, int] = (1, 4)
    digit_size: tuple[int, int] = (12, 44)
    seed: int = 0

    def __post_init__(self) -> None:
        width, height = self.image_size
        (fewest, most), (smallest, largest) = self.digits_per_image, self.digit_size
        needed = int(np.ceil(GROWTH * largest))
        cover = most * (GROWTH * smallest) ** 2 / max(width * height, 1)
        counts = f'{self.num_train} and {self.num_val}'
        _require(
            min(self.num_train, self.num_val) >= 1,
            f'num_train and num_val must be at least 1, got {counts}.',
        )
        _require(self.seed >= 0, f'seed must not be negative, got {self.seed}.')
        _require(
            1 <= fewest <= most,
            f'digits_per_image must be 1 <= fewest <= most, got {fewest} and {most}.',
        )
        _require(
            8 <= smallest <= largest,
            f'digit_size must be 8 <= smallest <= largest, got {smallest} and {largest}.',
        )
        _require(
            min(width, height) >= needed,
            f'digits of {largest} pixels need an image_size of at least {needed}x{needed}, '
            f'got {width}x{height}.',
        )
        _require(
            cover <= MAX_COVER,
            f'{most} digits of {smallest} pixels or more are too many for a {width}x{height} '
            'image; enlarge image_size or lower digits_per_image.',
        )


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


def load_sources(seed: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Load the handwritten digits and split them, class by class, into train and val.

    Args:
        seed (int): Seed of the split. Defaults to 0.

    Returns:
        tuple: Images (1797, 8, 8) in 0..1, labels (1797,), and the indices of each split.
    """
    from sklearn.datasets import load_digits  # imports for a second; not needed if the data exists

    digits = load_digits()
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(len(SPLITS),)))
    indices = {split: [] for split in SPLITS}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        num_val = round(VAL_SHARE * len(members))
        indices['val'].extend(members[:num_val])
        indices['train'].extend(members[num_val:])
    images = digits.images.astype(np.float32) / 16
    return images, digits.target, {split: np.array(each) for split, each in indices.items()}


def image_rngs(seed: int, split: str, index: int) -> tuple[np.random.Generator, ...]:
    """Return the generators of one image, for its background and for its digits.

    They do not depend on the number of images.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
    return tuple(np.random.default_rng(child) for child in sequence.spawn(2))


def compose(
    split: str, index: int, sources: tuple, options: DigitsOptions
) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """Compose one image.

    Args:
        split (str): 'train' or 'val'.
        index (int): Number of the image in its split, from 0.
        sources (tuple): What :func:`load_sources` returns.
        options (DigitsOptions): The options.

    Returns:
        tuple: BGR image (H, W, 3), uint8, and a list of (index of the handwritten digit, box
        (x, y, w, h)).

    Raises:
        ConfigError: There is no room for the fewest digits.
    """
    images, _, indices = sources
    background_rng, rng = image_rngs(options.seed, split, index)
    background = draw_background(background_rng, options.image_size)
    fewest, most = options.digits_per_image
    for _ in range(LAYOUT_TRIES):
        image, placed = background.copy(), []
        for source in rng.choice(indices[split], rng.integers(fewest, most + 1)):
            taken = [box for _, box in placed]
            box = add_digit(rng, image, images[source], taken, options.digit_size)
            if box is not None:
                placed.append((int(source), box))
        if len(placed) >= fewest:
            return image, placed
    raise ConfigError(
        f'found no room for {fewest} digits in {split} image {index + 1}; '
        'enlarge image_size or lower digit_size.'
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
    _require(
        bool(_read_info(target)),
        f'{target} exists and is not a digits data set; choose another place.',
    )
    _require(
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
