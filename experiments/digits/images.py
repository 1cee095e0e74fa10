"""Detection images in COCO format, composed of the real handwritten digits of scikit-learn.

scikit-learn ships 1,797 handwritten digits of 8x8 pixels. Each image here shows a few of them,
enlarged, rotated and coloured, on a textured background with distractor lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdimkd_det.errors import ConfigError

from .drawing import Box, add_digit, draw_background

VERSION = '1.0'  # raised when the same options give other images
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
        require(
            min(self.num_train, self.num_val) >= 1,
            f'num_train and num_val must be at least 1, got {counts}.',
        )
        require(self.seed >= 0, f'seed must not be negative, got {self.seed}.')
        require(
            1 <= fewest <= most,
            f'digits_per_image must be 1 <= fewest <= most, got {fewest} and {most}.',
        )
        require(
            8 <= smallest <= largest,
            f'digit_size must be 8 <= smallest <= largest, got {smallest} and {largest}.',
        )
        require(
            min(width, height) >= needed,
            f'digits of {largest} pixels need an image_size of at least {needed}x{needed}, '
            f'got {width}x{height}.',
        )
        require(
            cover <= MAX_COVER,
            f'{most} digits of {smallest} pixels or more are too many for a {width}x{height} '
            'image; enlarge image_size or lower digits_per_image.',
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


def require(condition: bool, message: str) -> None:
    """Raise a ``ConfigError`` unless a condition holds."""
    if not condition:
        raise ConfigError(message)
