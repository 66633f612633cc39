"""The marks of a scatter plot, antialiased: discs within the scale, triangles at its edge, the diagonal.

Shape suffixes: N points, A the two axes (score to the right, effect upwards), C colour channels, Y and X pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 441  # of the square, pixels; odd, so that zero is the middle of a pixel
PARTS = 4  # positions within a pixel, each way
TRIANGLE_RADIUS, TRIANGLE_OPACITY = 2.5, 0.9
DIAGONAL_OPACITY = 0.65


def draw_marks(field: Image.Image, places_AN: NDArray[np.floating], colours_NC: NDArray[np.uint8]) -> None:
    """Draws a disc for each point, or a triangle for one beyond the scale.

    Args:
        field: A square of `SIDE` pixels.
        places_AN: The points, with the edges of the field at -1 and 1.
        colours_NC: RGB of each point.
    """
    count = places_AN.shape[1]
    radius = max(4.4 - 0.65 * math.log10(count), 1.5)
    opacity = max(0.95 - 0.1 * math.log10(count), 0.5)
    outward_AN = np.where(np.abs(places_AN) > 1, np.sign(places_AN), 0)
    # The distance from a triangle's centre to its tip keeps the tip within the field.
    room_N = np.where(outward_AN.any(0), 2 * TRIANGLE_RADIUS, 0)
    pixels_AN = np.clip((1 + places_AN * [[1], [-1]]) * SIDE / 2, room_N, SIDE - room_N)
    whole_AN, part_AN = np.divmod((pixels_AN * PARTS).round(), PARTS)
    rows_N = np.concatenate([whole_AN, part_AN, outward_AN, colours_NC.T]).T.astype(int)
    for x, y, part_x, part_y, right, up, *colour in np.random.default_rng(0).permutation(rows_N).tolist():
        mark = _triangle(right, up, part_x, part_y) if right or up else _disc(radius, opacity, part_x, part_y)
        field.paste(tuple(colour), (x - mark.width // 2, y - mark.height // 2), mark)


def diagonal() -> Image.Image:
    """The line of equal values as a mask."""
    at = np.arange(SIDE)
    return _mask(np.abs(at + at[:, None] - (SIDE - 1)) / math.sqrt(2) - 0.5, DIAGONAL_OPACITY)


@lru_cache(maxsize=256)
def _disc(radius: float, opacity: float, part_x: int, part_y: int) -> Image.Image:
    """A disc as a mask, its centre at these parts of a pixel from the corner of the mask's middle pixel."""
    x_X, y_Y1 = _offsets(radius, part_x, part_y)
    return _mask(np.hypot(x_X, y_Y1) - radius, opacity)


@lru_cache(maxsize=256)
def _triangle(right: int, up: int, part_x: int, part_y: int) -> Image.Image:
    """An equilateral triangle as a mask, pointing to the right and up, each -1, 0 or 1."""
    x_X, y_Y1 = _offsets(2 * TRIANGLE_RADIUS, part_x, part_y)
    tip = math.atan2(-up, right)
    distances = [
        math.cos(side) * x_X + math.sin(side) * y_Y1
        for side in (tip - math.pi / 3, tip + math.pi / 3, tip + math.pi)
    ]
    return _mask(np.max(distances, axis=0) - TRIANGLE_RADIUS, TRIANGLE_OPACITY)


def _offsets(reach: float, part_x: int, part_y: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Distances of a mask's pixels from the centre of the mark, to the right and downwards."""
    half = math.ceil(reach) + 1
    middles = np.arange(-half, half + 1) + 0.5
    return middles - part_x / PARTS, (middles - part_y / PARTS)[:, None]


def _mask(distance_YX: NDArray[np.floating], opacity: float) -> Image.Image:
    """An antialiased shape, given the distance of each pixel from it: negative inside, positive outside."""
    return Image.fromarray((255 * opacity * np.clip(0.5 - distance_YX, 0, 1)).round().astype(np.uint8))
