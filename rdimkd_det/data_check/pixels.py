"""Image files' headers: their sizes and channels, as the pipeline will load them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from mmdet.registry import TRANSFORMS
from PIL import Image

from ..files.configs import mappings
from ..host.registry import find_type
from ..host.versions import FITTING
from ..options import PACKAGES
from .annotated_set import AnnotatedSet
from .findings import Finding
from .images import loading_step

# Images looked at when a training starts; preflight looks at all.
NUM_SAMPLES = 100
ORIENTATION = 0x0112  # EXIF tag
TURNED = (5, 6, 7, 8)  # its values that swap width and height
# Channels of Pillow's modes as OpenCV loads them unchanged.
CHANNELS = {'1': 1, 'L': 1, 'I': 1, 'F': 1, 'RGB': 3, 'P': 3, 'CMYK': 3, 'YCbCr': 3, 'LA': 4,
            'PA': 4, 'RGBA': 4}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What the header of an image file says."""

    size: tuple[int, int]  # width and height of the stored pixels
    mode: str
    orientation: int


def read_header(path: str) -> Header | None:
    """Return the header of an image file; None if Pillow cannot read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large images
            with Image.open(path) as image:
                # Pillow would decode a PNG to look for its tags.
                has_tags = image.format != 'PNG' or 'exif' in image.info
                tag = image.getexif().get(ORIENTATION, 1) if has_tags else 1
                return Header(image.size, image.mode, tag if isinstance(tag, int) else 1)
    except Exception:  # damaged files are named when they are loaded
        return None


def check_headers(
    data: AnnotatedSet, dataset: Mapping, channels: int | None, thorough: bool
) -> Iterator[Finding]:
    """Yield images of another size, depth or number of channels than is expected.

    ``channels`` are those that the networks take; ``thorough`` reads all headers, not a sample.
    """
    step = loading_step(dataset)
    places = data.loaded.nonzero()[0]
    if step is None or not len(places):
        return
    if not thorough and len(places) > NUM_SAMPLES:
        places = places[np.linspace(0, len(places) - 1, NUM_SAMPLES).astype(int)]
    read = [(place, read_header(data.image_paths[place])) for place in places]
    found = [(place, header) for place, header in read if header is not None]
    if not found:
        return
    looked = f'{len(found)} images' if len(found) == data.loaded.sum() else (
        f'{len(found)} images looked at')  # fmt: skip
    color = str(step.get('color_type', 'color'))
    yield from _check_sizes(data, found, color, looked)
    if any(_is_own(it) for it in mappings(dataset['pipeline']) if 'type' in it):
        channels = None  # it may add channels, or drop some
    yield from _check_modes(data, found, color, looked, channels)


def _is_own(step: Mapping) -> bool:
    """Return whether a transform is the user's own."""
    kind = find_type(step, TRANSFORMS)
    return getattr(kind, '__module__', '').partition('.')[0] not in (*PACKAGES, *FITTING)


def _check_sizes(data: AnnotatedSet, found: list, color: str, looked: str) -> Iterator[Finding]:
    turns = color != 'unchanged' and not color.endswith('ignore_orientation')
    wrong = []
    for place, header in found:
        turned = turns and header.orientation in TURNED
        loaded = header.size[::-1] if turned else header.size
        annotated = data.sizes[place]
        if np.isfinite(annotated).all() and tuple(annotated) != loaded:
            wrong.append((place, header, loaded, turned))
    if not wrong:
        return
    place, header, loaded, turned = wrong[0]
    tags = Counter(it.orientation for _, it, _, _ in wrong if it.orientation in TURNED)
    width, height = (f'{value:g}' for value in data.sizes[place])
    example = (
        f'{data.image_paths[place]} is loaded as {loaded[0]}x{loaded[1]} (width x height) and '
        f'annotated as {width}x{height}'
    )
    remedy = 'make the annotations for images of this size, or correct width and height in the file'
    text = f'{len(wrong)} of {looked} of {data.path} have another size than in the file: {example}'
    if tags:
        numbers = ' and '.join(map(str, sorted(tags)))
        text += f'; {sum(tags.values())} of them have the EXIF orientation {numbers}'
        text += ', by which loading turns them' if turned else ', which loading ignores'
        remedy = (
            "if the boxes were drawn on the unturned pixels, set color_type='color_ignore_"
            "orientation' in LoadImageFromFile; else swap width and height in the file"
            if turned
            else "set color_type='color' in LoadImageFromFile, which turns the images"
        )
    elif (float(loaded[1]), float(loaded[0])) == tuple(data.sizes[place]):
        text += ', swapped'
        remedy = 'swap width and height in the file, if the boxes fit the images as they are loaded'
    yield Finding(
        'warning', 'Images', data.split, data.path, text, remedy,
        len(wrong), len(found), example,
    )  # fmt: skip


def _check_modes(
    data: AnnotatedSet, found: list, color: str, looked: str, channels: int | None
) -> Iterator[Finding]:
    deep = [place for place, header in found if header.mode.startswith('I')]
    if deep and color != 'unchanged':
        yield Finding(
            'warning', 'Images', data.split, data.path,
            f'{len(deep)} of {looked} of {data.path} have 16 bits per channel, of which '
            f'color_type={color!r} keeps the upper 8, e.g. {data.image_paths[deep[0]]}',
            "if the upper bits are empty, the images are black: scale them to 8 bits, or set "
            "color_type='unchanged' and mean and std to match",
            len(deep), len(found), data.image_paths[deep[0]],
        )  # fmt: skip
    if channels is None:
        return
    wrong = [
        (place, header) for place, header in found
        if loaded_channels(header.mode, color) not in (None, channels)
    ]  # fmt: skip
    if wrong:
        place, header = wrong[0]
        number = loaded_channels(header.mode, color)
        yield Finding(
            'error' if number < channels else 'warning', 'Images', data.split, data.path,
            f'{len(wrong)} of {looked} of {data.path} have {number} channels ({header.mode}) as '
            f'color_type={color!r} loads them, and the network takes {channels}, e.g. '
            f'{data.image_paths[place]}',
            "set color_type='color' in LoadImageFromFile" if channels == 3 else
            'convert the images, or set mean, std and in_channels to match',
            len(wrong), len(found), data.image_paths[place],
        )  # fmt: skip


def loaded_channels(mode: str, color_type: str) -> int | None:
    """Return the channels of a loaded image of one of Pillow's modes; None if not known."""
    if color_type.startswith('color'):
        return 3
    if color_type.startswith('gray'):
        return 1
    return CHANNELS.get(mode, 1 if mode.startswith('I;') else None)
