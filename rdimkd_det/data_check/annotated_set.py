"""The annotated boxes of one data set, and what becomes of each of them in loading."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from mmengine.fileio import join_path
from mmengine.utils import is_abs

from .findings import SetSummary

Files = list[tuple[str, 'os.stat_result | None']]  # path and `stat` of each; None if it is no file


def data_folder(dataset: Mapping, key: str) -> str:
    """Return one of a data set's prefixes, below its root; building it judges what is none."""
    prefixes = dataset.get('data_prefix')
    prefix = str(prefixes.get(key) or '') if isinstance(prefixes, Mapping) else ''
    root = str(dataset.get('data_root') or '')
    return join_path(root, prefix) if root and not is_abs(prefix) else prefix


def kept_images(dataset: Mapping, sizes: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """Return which images a data set keeps; ``annotated`` has the places of those with a class."""
    filters = dataset.get('filter_cfg') or {}
    if dataset.get('test_mode') or not len(sizes):
        return np.ones(len(sizes), bool)
    kept = ~(sizes.min(1) < filters.get('min_size', 0))
    if filters.get('filter_empty_gt'):
        kept &= np.isin(np.arange(len(sizes)), annotated)
    return kept


@dataclass(frozen=True)
class Loss:
    """A reason for which loading makes no object of a box.

    ``intended`` ones are a choice, of the data's authors or in the config: they are a mistake only
    where they take most boxes.
    """

    name: str  # in tables
    text: str  # '3 boxes ...'
    remedy: str
    intended: bool = False


# In the order in which loading finds them; a box has the first that is true. 0 is an object.
LOSSES = (
    Loss('', '', ''),
    Loss(
        'no image',
        'have an image_id that no image has',
        'write image_id as the id of the image, or remove these annotations',
    ),
    Loss(
        "'ignore'",
        "are marked 'ignore'",
        "remove 'ignore' from the annotations that are objects",
        intended=True,
    ),
    Loss('not a number', 'have NaN or infinity in bbox', 'write bbox as [x, y, width, height]'),
    Loss(
        'below a pixel',
        'have a width or height below 1 pixel',
        'write bbox as [x, y, width, height] in pixels, or remove such boxes',
    ),
    Loss(
        'outside',
        'lie outside of their image',
        'compare bbox ([x, y, width, height] in pixels) with width and height of the images',
    ),
    Loss('area 0', 'have an area of 0 or less', 'write area as width times height of the box'),
    Loss(
        'no category',
        'have a category_id that no category has',
        'write category_id as the id of a category of the file',
    ),
    Loss(
        'other class',
        'are of categories that are not among the classes',
        'compare metainfo.classes with the categories',
        intended=True,
    ),
    Loss(
        'crowd',
        'are crowds (iscrowd)',
        'write iscrowd as the number 0 in the annotations of single objects',
        intended=True,
    ),
    Loss(
        'difficult', 'are marked difficult', 'mark objects to learn as difficult=0', intended=True
    ),
    Loss(
        'small box',
        'have a side below filter_cfg.bbox_min_size, and count as crowds',
        'lower filter_cfg.bbox_min_size of the data set',
        intended=True,
    ),
    Loss(
        'small image',
        'are in images smaller than filter_cfg.min_size',
        'lower filter_cfg.min_size of the data set',
        intended=True,
    ),
)
BY_NAME = {loss.name: code for code, loss in enumerate(LOSSES)}


@dataclass
class AnnotatedSet:
    """The n images and m boxes of one annotation file as one data set of the config loads them."""

    split: str  # 'train', 'val' or 'test'
    path: str  # of the annotations, or of the list of VOC's images
    classes: Sequence[str]  # of the data set
    labelled: Sequence  # names of the labels: the classes that the file has, in its order
    image_ids: list
    image_paths: list
    sizes: np.ndarray  # width and height of the images (n, 2), as annotated; NaN if unknown
    loaded: np.ndarray  # the images that the data set keeps (n)
    boxes: np.ndarray  # x, y, width, height (m, 4)
    image_index: np.ndarray  # the place of each box's image (m), or -1
    labels: np.ndarray  # of each box (m), or -1
    losses: np.ndarray  # the code in LOSSES of each box (m)
    example: Callable[[int], str]  # describes a box by its place
    # What is known of a loss beside its number, by its name, as (text, remedy).
    hints: dict[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def files(self) -> Files:
        """Files: The images that are kept."""
        paths = [self.image_paths[place] for place in self.loaded.nonzero()[0]]
        return [(path, _stat(path)) for path in paths]

    @property
    def objects(self) -> np.ndarray:
        """Return which boxes are objects."""
        return self.losses == 0

    @property
    def lost(self) -> dict[str, int]:
        """Return the number of boxes by the reason for which they are lost."""
        counts = np.bincount(self.losses, minlength=len(LOSSES))
        return {loss.name: int(n) for loss, n in zip(LOSSES, counts) if loss.name and n}

    def first_lost(self, name: str) -> str:
        """Describe the first box that is lost for a reason."""
        return self.example(int((self.losses == BY_NAME[name]).argmax()))

    @property
    def objects_by_class(self) -> dict[str, int]:
        """Return the number of objects of each class that the file has."""
        counts = np.bincount(self.labels[self.objects], minlength=len(self.labelled))
        return {str(name): int(number) for name, number in zip(self.labelled, counts)}

    def of_indices(self, indices: int | Sequence[int] | None) -> AnnotatedSet:
        """Return the part that a data set with the option ``indices`` picks of what it keeps."""
        if indices is None:
            return self
        places = self.loaded.nonzero()[0]
        if isinstance(indices, int):
            places = places[:indices] if indices >= 0 else places[indices:]
        else:
            places = places[[n for n in indices if n < len(places)]]
        loaded = np.isin(np.arange(len(self.loaded)), places)
        own = np.append(loaded, True)[self.image_index].nonzero()[0]  # True: of no image
        names = ('boxes', 'image_index', 'labels', 'losses')
        arrays = {name: getattr(self, name)[own] for name in names}
        example = self.example
        return replace(self, loaded=loaded, example=lambda index: example(own[index]), **arrays)

    def summary(self) -> SetSummary:
        """Return the numbers of this data set."""
        objects = self.objects
        areas = np.prod(self.boxes[objects][:, 2:], axis=1)
        return SetSummary(
            split=self.split,
            file=self.path,
            num_images=int(self.loaded.sum()),
            num_with_objects=int(np.unique(self.image_index[objects]).size),
            num_boxes=len(self.losses),
            num_objects=int(objects.sum()),
            lost=self.lost,
            objects_by_class=self.objects_by_class,
            median_side=round(float(np.sqrt(np.median(areas))), 1) if len(areas) else 0.0,
        )


def _stat(path: str) -> os.stat_result | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return None if stat.S_ISDIR(found.st_mode) else found
