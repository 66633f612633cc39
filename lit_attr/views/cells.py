"""The cells of a heatmap and their colour bar: blue for negative, white for zero, red for positive scores.

Shape suffixes: L layers, N rows of the picture (tokens or roles), C colour channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from lit_attr.views.colours import colours_of
from lit_attr.views.labels import line_height, text_mask
from lit_attr.views.sheet import FRAME, GAP, INK, TEXT, put, short_number

SPILL = line_height(TEXT) // 2 + 1  # half a line: the bar's end labels are centred on the edges of the grid
BAR_GAP, BAR_WIDTH = 28, 16  # the word "subject" stands in the gap
DOT = 5  # the size of a mark, pixels
GRID = (232, 232, 232)
EMPTY_HATCH, CLIPPED_HATCH = (196, 196, 196), (255, 255, 255)


class Quantity(NamedTuple):
    """What the values of a picture are, in logits.

    Attributes:
        name: Such as `score`.
        is_signed: Whether they may be negative; otherwise they are magnitudes.
    """

    name: str
    is_signed: bool = True


SCORE = Quantity("score")


def draw_cells(values_NL: NDArray[np.floating], scale: float, cell_w: int, cell_h: int) -> Image.Image:
    """Draws the cells, hatching those beyond the scale and those without a value.

    Args:
        values_NL: Finite, or NaN for an empty cell.
        scale: Magnitude that gets the deepest colour.
        cell_w: Width of a cell, pixels.
        cell_h: Height of a cell, pixels.
    """
    n_rows, n_layers = values_NL.shape
    size = (n_layers * cell_w, n_rows * cell_h)
    x, y = ((np.arange(side) % 8).astype(np.uint8) for side in size)
    stripes = Image.fromarray(((x + y[:, None]) % 8 == 0).astype(np.uint8) * 255)

    def enlarge(cells: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)

    image = enlarge(colours_of(values_NL, scale))
    for which, colour in ((np.abs(values_NL) > scale, CLIPPED_HATCH), (np.isnan(values_NL), EMPTY_HATCH)):
        if which.any():
            image.paste(colour, mask=ImageChops.darker(enlarge(which.astype(np.uint8) * 255), stripes))
    draw = ImageDraw.Draw(image)
    # In cells smaller than that, grid lines would cover too much of the colour.
    for x0 in range(0, size[0], cell_w) if cell_w >= 8 else ():
        draw.line((x0, 0, x0, size[1]), fill=GRID)
    for y0 in range(0, size[1], cell_h) if cell_h >= 8 else ():
        draw.line((0, y0, size[0], y0), fill=GRID)
    return image


def mark_cells(grid: Image.Image, marked_NL: NDArray[np.bool_], cell_w: int, cell_h: int) -> None:
    """Draws a dot into the lower right corner of the marked cells of a grid.

    Args:
        grid: The grid, see :func:`draw_cells`.
        marked_NL: The cells.
        cell_w: Width of a cell, pixels.
        cell_h: Height of a cell, pixels.
    """
    draw = ImageDraw.Draw(grid)
    size = max(1, min(DOT, cell_w // 3, cell_h // 3))
    for row, column in np.argwhere(marked_NL).tolist():
        right, bottom = (column + 1) * cell_w - size // 2 - 1, (row + 1) * cell_h - size // 2 - 1
        # Dark with a white rim: it is seen on every colour and on hatching.
        draw.ellipse((right - size - 1, bottom - size - 1, right + 1, bottom + 1), fill="white")
        draw.ellipse((right - size, bottom - size, right, bottom), fill=INK)


def colour_bar(scale: float, grid_h: int, quantity: Quantity) -> Image.Image:
    """Draws the colour bar of a grid.

    Args:
        scale: Magnitude that gets the deepest colour.
        grid_h: Height of the grid, pixels.
        quantity: What the values are.

    Returns:
        The bar with its labels, which extend ``SPILL`` pixels above and below the grid.
    """
    word, number = quantity.name, short_number(scale)
    if quantity.is_signed:
        lowest, labels = -1, {0: "+" + number, grid_h // 2: "0", grid_h - 1: "\N{MINUS SIGN}" + number}
    else:
        lowest, labels, word = 0, {0: number, grid_h - 1: "0"}, f"|{word}|"
    name = text_mask(f"{word} (logits)", TEXT).rotate(90, expand=True)
    numbers = {y: text_mask(label, TEXT) for y, label in labels.items()}
    bar, text = BAR_GAP, BAR_GAP + BAR_WIDTH + GAP
    width = text + max(mask.width for mask in numbers.values()) + GAP + name.width
    image = Image.new("RGB", (width, grid_h + 2 * SPILL), "white")
    draw = ImageDraw.Draw(image)
    ramp = colours_of(np.linspace(1, lowest, grid_h)[:, None], 1.0).repeat(BAR_WIDTH, axis=1)
    image.paste(Image.fromarray(ramp), (bar, SPILL))
    draw.rectangle((bar - 1, SPILL - 1, bar + BAR_WIDTH, SPILL + grid_h), outline=FRAME)
    for y, mask in numbers.items():
        draw.line((bar + BAR_WIDTH, SPILL + y, bar + BAR_WIDTH + 3, SPILL + y), fill=FRAME)
        put(image, mask, INK, text, SPILL + y, (0, 0.5))
    put(image, name, INK, width, SPILL + grid_h / 2, (1, 0.5))
    return image
