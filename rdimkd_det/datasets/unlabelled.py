"""``UnlabelledImages``: the images of a folder as a data set without labels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from PIL import Image

from ..errors import ConfigError
from ..host.registry import register

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
# Threads that read the sizes of images; a disk serves a few requests at once.
NUM_THREADS = 8
SHOWN = 5


@register(DATASETS)
class UnlabelledImages(BaseDataset):
    """All images in a folder and the folders in it; their samples say ``labelled=False``.

    A distilled student gets the distillation losses of such an image, and no loss of its own. The
    ``pipeline`` may be that of the labelled images: ``LoadAnnotations`` finds no object, and
    transforms that drop images without objects must be left out, as ``tools/distill.py
    --unlabelled`` does.

    Args:
        data_root (str): The folder. Files with other suffixes than those of images, and names that
            begin with a dot, are passed over.
        **kwargs: Other arguments of mmengine's ``BaseDataset``, such as ``pipeline`` and
            ``metainfo``. There is no ``ann_file``; a ``data_prefix`` is a path below the folder.

    Raises:
        ConfigError: The folder does not exist, or has no image or a file that cannot be read as
            one.
    """

    def __init__(self, data_root: str = '', **kwargs) -> None:
        if kwargs.get('ann_file'):
            raise ConfigError(
                f'UnlabelledImages takes the images of a folder, and no ann_file '
                f'({kwargs["ann_file"]}); drop it, or use the data set of these annotations.'
            )
        super().__init__(data_root=str(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images with path and size; ``img_id`` is the path in the folder."""
        folder = Path(next(iter(self.data_prefix.values()), self.data_root))
        return [
            {
                'img_id': path.relative_to(folder).as_posix(),
                'img_path': str(path),
                'height': height,
                'width': width,
                'instances': [],
                'labelled': False,
            }
            for path, (width, height) in find_images(folder)
        ]

    def get_data_info(self, idx: int) -> dict:
        """Return an image's entry, with the data set that MMYOLO's mosaic takes others from."""
        return {**super().get_data_info(idx), 'dataset': self}

    def __deepcopy__(self, memo: dict) -> UnlabelledImages:
        """Return the data set itself: MMDetection's cached mosaic copies what an entry holds."""
        return self

    def prepare_data(self, idx: int) -> object:
        """Load an image, and mark its sample whatever ``meta_keys`` the pipeline packs."""
        data = super().prepare_data(idx)
        sample = data.get('data_samples') if isinstance(data, Mapping) else None
        if hasattr(sample, 'set_metainfo'):
            sample.set_metainfo({'labelled': False})
        return data


def find_images(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Return the paths of all images in a folder, in order, each with its (width, height)."""
    if not folder.is_dir():
        raise ConfigError(f'UnlabelledImages: {folder} is no folder; give a folder of images.')
    paths = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIXES) and not _hidden(Path(root, name).relative_to(folder))
    )
    if not paths:
        raise ConfigError(
            f'UnlabelledImages: {folder} has no image, also not in the folders in it; images end '
            f'in {", ".join(SUFFIXES)}.'
        )
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        sizes = list(threads.map(_size, paths))
    unreadable = [str(path.relative_to(folder)) for path, size in zip(paths, sizes) if not size]
    if unreadable:
        more = f' and {len(unreadable) - SHOWN} others' if len(unreadable) > SHOWN else ''
        raise ConfigError(
            f'UnlabelledImages: {len(unreadable)} of {len(paths)} files in {folder} cannot be read '
            f'as images: {", ".join(unreadable[:SHOWN])}{more}; repair or remove them.'
        )
    return list(zip(paths, sizes))


def _hidden(path: Path) -> bool:
    return any(part.startswith('.') for part in path.parts)


def _size(path: Path) -> tuple[int, int] | None:
    """Read the size of an image from its header; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # each format has its own
        return None


def count_images(dataset: object) -> tuple[int, int]:
    """Return how many images of a built data set have labels, and how many have none."""
    if isinstance(dataset, UnlabelledImages):
        return 0, len(dataset)
    parts = getattr(dataset, 'datasets', None)
    if parts is not None:
        with_labels, without = zip(*map(count_images, parts))
        return sum(with_labels), sum(without)
    if hasattr(dataset, 'dataset'):  # a wrapper, which may repeat images
        with_labels, without = count_images(dataset.dataset)
        return (with_labels, without) if with_labels else (0, len(dataset))
    return len(dataset), 0


def share_metainfo(dataset: object) -> None:
    """Give a mixed data set the ``metainfo`` of its first part, in place.

    MMDetection's ``ConcatDataset`` (mmdet 3.3.0, OneDL 3.5.1) makes it a list where the parts
    differ, as images without labels have no classes; hooks and checkpoints expect a dict.
    """
    if count_images(dataset)[1] and isinstance(getattr(dataset, 'metainfo', None), list):
        dataset._metainfo = dataset.metainfo[0]
