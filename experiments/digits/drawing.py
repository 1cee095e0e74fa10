"""Drawing for the digits: backgrounds, and digits that stand out from them."""

from __future__ import annotations

import cv2
import numpy as np

MAX_ANGLE = 15.0  # degrees
MAX_OVERLAP = 0.1  # of the smaller of two boxes
MIN_CONTRAST = 50  # least grey-level difference between a digit and 90 % of its background
PLACE_TRIES, COLOUR_TRIES = 100, 10

Box = tuple[int, int, int, int]  # x, y, w, h in pixels


def draw_background(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw soft blotches, grain and distractor lines.

    Args:
        rng (np.random.Generator): Source of randomness.
        size (tuple[int, int]): Width and height.

    Returns:
        np.ndarray: BGR image (H, W, 3), uint8.
    """
    width, height = size
    cells = rng.integers(2, 12, 2)
    blotches = rng.normal(0, rng.uniform(4, 18), (*cells, 3)).astype(np.float32)
    canvas = cv2.resize(blotches, size, interpolation=cv2.INTER_CUBIC)
    canvas += rng.uniform(30, 225, 3).astype(np.float32)
    canvas += rng.normal(0, rng.uniform(1, 7), (height, width, 1)).astype(np.float32)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    for _ in range(rng.integers(2, 7)):
        # Two or three points make straight strokes and hooks, the parts that digits consist of.
        points = rng.uniform((0, 0), size, (rng.integers(2, 4), 2)).astype(np.int32)
        colour, thickness = rng.integers(0, 256, 3).tolist(), int(rng.integers(1, 3))
        cv2.polylines(image, [points], False, colour, thickness, cv2.LINE_AA)
    return image


def render_digit(digit: np.ndarray, size: float, angle: float) -> np.ndarray:
    """Enlarge and rotate a digit, and crop it to its ink.

    Args:
        digit (np.ndarray): Image (8, 8) in 0..1.
        size (float): Side of the 8x8 tile after enlarging, in pixels.
        angle (float): Rotation in degrees.

    Returns:
        np.ndarray: Opacity (h, w) in 0..1, with ink on each of its four sides.
    """
    padded = np.pad(digit, 2)  # room for the corners of a rotated tile
    scale, side = size / len(digit), int(np.ceil(size / len(digit) * len(padded)))
    centre = (len(padded) - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), angle, scale)
    matrix[:, 2] += (side - 1) / 2 - centre
    grey = cv2.warpAffine(padded, matrix, (side, side), flags=cv2.INTER_CUBIC)
    # Grey in the 8x8 original is coverage: a steep ramp around one half restores a sharp edge.
    alpha = np.clip((grey - 0.25) / 0.5, 0, 1)
    alpha[alpha < 0.1] = 0  # invisible, but would enlarge the box
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pick_colour(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray | None:
    """Pick a BGR colour that stands out from a patch (h, w, 3), or None if there is none."""
    grey = cv2.cvtColor(patch, cv2.COLOR_BGR2GRAY).astype(np.float32)
    colours = rng.integers(0, 256, (COLOUR_TRIES, 3), dtype=np.uint8)
    colours = np.concatenate([colours, np.uint8([[0, 0, 0], [255, 255, 255]])])
    levels = cv2.cvtColor(colours[None], cv2.COLOR_BGR2GRAY)[0]
    for colour, level in zip(colours, levels):
        if np.percentile(np.abs(grey - level), 10) >= MIN_CONTRAST:
            return colour
    return None


def overlap(box: Box, other: Box) -> float:
    """Intersection of two boxes (x, y, w, h) as a share of the smaller one."""
    w, h = (
        max(min(box[i] + box[i + 2], other[i] + other[i + 2]) - max(box[i], other[i]), 0)
        for i in (0, 1)
    )
    return w * h / min(box[2] * box[3], other[2] * other[3])


def add_digit(
    rng: np.random.Generator,
    image: np.ndarray,
    digit: np.ndarray,
    boxes: list[Box],
    digit_size: tuple[int, int],
) -> Box | None:
    """Draw one digit into the image, at a random place with enough room and contrast.

    Args:
        rng (np.random.Generator): Source of randomness.
        image (np.ndarray): BGR image (H, W, 3), uint8, changed in place.
        digit (np.ndarray): Image (8, 8) in 0..1.
        boxes (list[Box]): Boxes (x, y, w, h) of the digits in the image.
        digit_size (tuple[int, int]): Smallest and largest side of the digit's tile, in pixels.

    Returns:
        Box | None: The box (x, y, w, h), or None if no place was found.
    """
    smallest, largest = digit_size
    for _ in range(PLACE_TRIES):
        size = rng.integers(smallest, largest + 1)
        alpha = render_digit(digit, size, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        h, w = alpha.shape
        x, y = (int(rng.integers(0, n - m + 1)) for n, m in zip(image.shape[1::-1], (w, h)))
        if any(overlap((x, y, w, h), other) > MAX_OVERLAP for other in boxes):
            continue
        colour = pick_colour(rng, image[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2])
        if colour is not None:
            region, alpha = image[y : y + h, x : x + w], alpha[..., None]
            region[:] = np.rint(region * (1 - alpha) + colour * alpha)
            return x, y, w, h
    return None
