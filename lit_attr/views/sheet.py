"""What all pictures share: margins, colours of text and frame, placement of text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_attr.views.labels import drawable, text_mask, wrap

TEXT, TITLE, SMALL = 16, 20, 14  # font sizes, pixels
PAD, GAP = 18, 6
MAX_HEADING = 500  # characters of a title or subtitle
INK, SOFT_INK, FRAME = (24, 24, 24), (84, 84, 84), (150, 150, 150)

# The mask and the colour of a line of text.
Line = tuple[Image.Image, tuple[int, int, int]]


def heading(title: str, subtitle: str, width: int) -> list[Line]:
    """Title and subtitle, wrapped to the width of a picture in pixels, without the middle of a very long one."""
    lines: list[Line] = []
    for text, size, colour in ((title, TITLE, INK), (subtitle, SMALL, SOFT_INK)):
        drawn = wrap(drawable(text, MAX_HEADING), size, width - 2 * PAD)
        lines += ((text_mask(line, size), colour) for line in drawn)
    return lines


def total_height(lines: Iterable[Line]) -> int:
    """The height of stacked lines."""
    return sum(mask.height for mask, _ in lines)


def put_lines(image: Image.Image, lines: Iterable[Line], x: float, y: int, anchor: float) -> None:
    """Stacks lines downwards from y, each with its left, middle or right (anchor 0, 0.5 or 1) at x."""
    for mask, colour in lines:
        put(image, mask, colour, x, y, (anchor, 0))
        y += mask.height


def put(
    image: Image.Image,
    mask: Image.Image,
    colour: tuple[int, int, int],
    x: float,
    y: float,
    anchor: tuple[float, float],
) -> None:
    """Puts text with its left, middle or right (anchor 0, 0.5 or 1) at x, and its top, middle or bottom at y."""
    image.paste(colour, (int(x - anchor[0] * mask.width), int(y - anchor[1] * mask.height)), mask)


def short_number(size: float) -> str:
    """A positive number with three significant digits, in scientific notation outside 0.001 … 100,000."""
    if 1e-3 <= size < 1e5:
        return f"{size:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    mantissa, exponent = f"{size:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def check_axes(values: NDArray[np.floating], name: str, **axes: Sequence[object]) -> None:
    """Raises a ValueError unless the values have one axis for each of these, as long as it and not empty."""
    expected = tuple(map(len, axes.values()))
    if values.shape != expected or 0 in expected:
        raise ValueError(f"{name}: shape {values.shape}, but {' by '.join(axes)} is {expected}, at least one each")
