"""The maps of one fact on a terminal: tokens downwards, layers to the right, as in the heatmaps.

Where the terminal has colours, a cell has that of its value, and its number where all layers have room for theirs.
Without colours a cell is its number, and the layers that have no room go below the others.

Axes: L layers, T tokens, S those that are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from lit_attr.views.colours import colours_of, scale_of
from lit_attr.views.terminal.console import UNBOUNDED, fitted, has_shades, text_of
from lit_attr.views.terminal.numbers import Numbers, numbers_of

MOST_TOKENS = 60
LABEL = 16  # columns of a token
LAYER = "layer"
WIDEST = 4  # columns of a cell without its number
BETWEEN = 4  # columns between two maps
EXACT, BEYOND, SUBJECT = "*", "#", "|"
LIGHT = 140  # of 255: on lighter colours text is black


class Map(NamedTuple):
    """A map.

    Attributes:
        name: Written above it.
        values_LT: The values, in logits.
        marked_LT: The cells that are exact effects; None where none is.
    """

    name: str
    values_LT: NDArray[np.float64]
    marked_LT: NDArray[np.bool_] | None = None


class _Grid(NamedTuple):
    """What the maps of a fact share.

    Attributes:
        layers: The layers.
        tokens_S: The positions of the tokens that are shown.
        labels: The label of each of them.
        scale: The magnitude with the deepest colour.
        numbers: How numbers are written; None for cells without.
        cell: The columns of a cell.
        shades: Whether cells have colours.
    """

    layers: Sequence[int]
    tokens_S: list[int]
    labels: list[Text]
    scale: float
    numbers: Numbers | None
    cell: int
    shades: bool


def draw_maps(
    console: Console,
    rows: Sequence[Sequence[Map]],
    *,
    layers: Sequence[int],
    tokens: Sequence[str],
    subject_span: tuple[int, int],
) -> Iterator[Text]:
    """Draws maps of one fact on one scale, and what their colours and marks mean.

    Args:
        console: Where they are printed.
        rows: The maps; those of a row stand side by side where they have room.
        layers: The layer of each row of values.
        tokens: The text of each token.
        subject_span: The subject's first token, and the one after its last.

    Yields:
        The lines.
    """
    maps = [each for row in rows for each in row]
    # Position 0 does not set the scale, as in the heatmaps.
    all_TL = np.concatenate([each.values_LT.T for each in maps], axis=1)
    scale = scale_of(all_TL)
    tokens_S = shown_tokens(all_TL)
    labels = [_label(console, tokens[place], is_subject=place in range(*subject_span)) for place in tokens_S]
    width = max(len(LAYER), *(cell_len(label.plain) for label in labels))
    labels = [fitted(label, min(width, LABEL + 1)) for label in labels]
    room = console.width - width - 1
    numbers = numbers_of(all_TL, scale)
    # A number, its mark, and a space.
    cell = numbers.width + 2
    shades = has_shades(console)
    grid = _Grid(layers, tokens_S, labels, scale, numbers, cell, shades)
    if shades and len(layers) * cell > room:
        grid = grid._replace(numbers=None, cell=max(1, min(WIDEST, room // len(layers))))
    count = max(1, room // grid.cell)
    parts = [range(start, min(start + count, len(layers))) for start in range(0, len(layers), count)]
    for row in rows:
        for part in parts:
            yield from _beside([_draw(each, grid, part) for each in row], console.width)
    yield from _legend(maps, grid, all_TL)


def _beside(drawn: Sequence[Sequence[Text]], width: int) -> Iterator[Text]:
    """The lines of maps side by side, or one below the other where they have no room, or in a pipe."""
    widths = [max(cell_len(line.plain) for line in lines) for lines in drawn]
    if len(drawn) == 1 or width == UNBOUNDED or sum(widths) + BETWEEN * (len(drawn) - 1) > width:
        for lines in drawn:
            yield from lines
        return
    for texts in zip(*drawn, strict=True):
        yield Text(" " * BETWEEN).join(fitted(text, each) for text, each in zip(texts, widths, strict=True))


def shown_tokens(values_TL: NDArray[np.float64]) -> list[int]:
    """The positions of the tokens that are shown: of many the first, the last, and those with large values."""
    if len(values_TL) <= MOST_TOKENS:
        return [*range(len(values_TL))]
    largest_T = np.abs(values_TL).max(1)
    largest_T[[0, -1]] = np.inf
    chosen: list[int] = np.sort(np.argsort(-largest_T, kind="stable")[:MOST_TOKENS]).tolist()
    return chosen


def _label(console: Console, token: str, *, is_subject: bool) -> Text:
    text = text_of(token.replace(" ", "_" if console.options.ascii_only else "␣"), LABEL) or '""'
    return Text(f"{SUBJECT if is_subject else ' '}{text}", "bold" if is_subject else "")


def _draw(each: Map, grid: _Grid, part: range) -> list[Text]:
    """The lines of a map in some of its layers: its name, the layers, a line a token."""
    width = cell_len(grid.labels[0].plain)
    lines = [Text(text_of(each.name, 60), "bold"), Text(LAYER.rjust(width), "dim")]
    lines[1].append(" ")
    if grid.numbers is not None:
        for place in part:
            lines[1].append(f"{grid.layers[place]} ".rjust(grid.cell))
    else:
        # As many as have room.
        step = math.ceil((len(str(grid.layers[part[-1]])) + 1) / grid.cell)
        for place in part[::step]:
            lines[1].append(str(grid.layers[place]).ljust(step * grid.cell))
    lines[1].rstrip()
    before = -1
    for label, token in zip(grid.labels, grid.tokens_S, strict=True):
        if token > before + 1:
            lines.append(Text(f" … {token - before - 1} tokens", "dim"))
        before = token
        line = Text().append_text(label)
        line.append(" ")
        for place in part:
            line.append_text(_cell(each, grid, place, token))
        if not grid.shades:
            line.rstrip()
        lines.append(line)
    lines.append(Text())
    return lines


def _cell(each: Map, grid: _Grid, layer: int, token: int) -> Text:
    value = float(each.values_LT[layer, token])
    is_exact = each.marked_LT is not None and bool(each.marked_LT[layer, token])
    if grid.numbers is not None:
        text = f"{grid.numbers.text(value)}{EXACT if is_exact else ' '}".rjust(grid.cell)
    else:
        text = (BEYOND if abs(value) > grid.scale else EXACT if is_exact else " ").center(grid.cell)
    if not grid.shades:
        return Text(text)
    red, green, blue = colours_of(np.array(value), grid.scale).tolist()
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > LIGHT
    ink = Color.from_rgb(0, 0, 0) if is_light else Color.from_rgb(255, 255, 255)
    return Text(text, Style(color=ink, bgcolor=Color.from_rgb(red, green, blue)))


def _legend(maps: Sequence[Map], grid: _Grid, all_TL: NDArray[np.float64]) -> Iterator[Text]:
    """What colours, numbers and marks mean; those that do not occur are not explained."""
    found = []
    if grid.shades:
        found.append(f"red: for the true answer, blue: for the false one, deepest at ±{grid.scale:.3g} logits")
    if grid.numbers is not None and not grid.shades:
        found.append("+ for the true answer, - for the false one")
    if grid.numbers is not None:
        found.append(f"numbers in {grid.numbers.unit}")
    if grid.shades and (np.abs(all_TL) > grid.scale).any():
        mark = "" if grid.numbers is not None else f" ({BEYOND})"
        found.append(f"position 0 does not set the scale{mark}")
    if any(each.marked_LT is not None and each.marked_LT.any() for each in maps):
        found.append(f"{EXACT} exact effect")
    found.append(f"{SUBJECT} subject")
    yield Text("; ".join(found), "dim")
