"""Heatmaps of scores: tokens or roles downwards, layers to the right, one signed colour scale centred on zero.

They have the orientation of ROME's causal traces, so that the two can be compared side by side. Pillow alone draws
them, in milliseconds each.

Shape suffixes: L layers, T tokens, R roles, N rows of the picture (tokens or roles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_attr.views.cells import (
    SCORE,
    SPILL,
    Quantity,
    colour_bar,
    draw_cells,
    mark_cells,
)
from lit_attr.views.colours import largest_magnitude, scale_of
from lit_attr.views.labels import drawable, line_height, text_mask, token_label, wrap
from lit_attr.views.sheet import (
    FRAME,
    GAP,
    INK,
    PAD,
    SMALL,
    SOFT_INK,
    TEXT,
    Line,
    check_axes,
    heading,
    put,
    put_lines,
    short_number,
    total_height,
)

MIN_WIDTH = 480
# Between maps side by side, where the word "subject" stands.
PANEL_GAP = 28
UNDERLINE_ROOM = 3
APART = 8  # pixels below the row of position 0


class Panel(NamedTuple):
    """One of several maps side by side.

    Attributes:
        name: Written above it.
        values: Layers by tokens, or by roles, in logits.
        marked: The cells that get a dot.
    """

    name: str
    values: NDArray[np.floating]
    marked: NDArray[np.bool_] | None = None


def draw_fact_heatmap(
    scores_LT: NDArray[np.floating],
    *,
    layers: Sequence[int],
    tokens: Sequence[str],
    subject_span: tuple[int, int],
    title: str,
    subtitle: str,
    marked_LT: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draws the scores of one fact, the first token at the top.

    The scale is symmetric and ends at the largest magnitude at any token but the first: position 0 is an attention
    sink, often many times as large as the rest. Its cells are hatched where they exceed the scale, with the true
    maximum in a note. Where no other score is non-zero, position 0 sets the scale.

    Args:
        scores_LT: Signed finite scores in logits, ``layers`` by ``tokens``; drawn transposed.
        layers: True layer indices, ascending; any subset of the model's. The first is at the left.
        tokens: Token texts as decoded, leading spaces included.
        subject_span: First subject token and the one after the last, as indices into ``tokens``.
        title: Such as ``The capital of Spain is →  Madrid / Paris``; wrapped, never clipped.
        subtitle: Such as ``logit difference +4.70 · MLP gradient × activation``; wrapped as well.
        marked_LT: The cells that get a dot.

    Returns:
        Mode ``RGB``, deterministic; ``np.asarray`` of it is the HWC uint8 array that TensorBoard takes.

    Raises:
        ValueError: If the shape does not match ``layers`` and ``tokens``, a score is not finite, or the span is
            empty or reaches beyond the tokens.
    """
    panel = Panel("", scores_LT, marked_LT)
    return draw_fact_heatmaps(
        [panel], layers=layers, tokens=tokens, subject_span=subject_span, title=title, subtitle=subtitle
    )


def draw_fact_heatmaps(
    panels: Sequence[Panel],
    *,
    layers: Sequence[int],
    tokens: Sequence[str],
    subject_span: tuple[int, int],
    title: str,
    subtitle: str,
) -> Image.Image:
    """Draws several kinds of scores of one fact side by side on one scale, as :func:`draw_fact_heatmap` draws one.

    Args:
        panels: The scores, signed and finite, layers by tokens.
        layers: True layer indices of each.
        tokens: Token texts as decoded.
        subject_span: First subject token and the one after the last.
        title: Wrapped, never clipped.
        subtitle: Wrapped as well.
    """
    for _, scores_LT, _ in panels:
        check_axes(scores_LT, "scores_LT", layers=layers, tokens=tokens)
        if not np.isfinite(scores_LT).all():
            raise ValueError("scores_LT: every score must be finite")
    start, stop = subject_span
    if not 0 <= start < stop <= len(tokens):
        raise ValueError(f"subject_span: {subject_span} is not a span of the {len(tokens)} tokens")
    labels = [token_label(token) for token in tokens]
    return _draw(panels, layers, labels, range(start, stop), title, subtitle)


def draw_role_heatmap(
    means_LR: NDArray[np.floating],
    *,
    layers: Sequence[int],
    roles: Sequence[str],
    counts: Sequence[int],
    title: str,
    subtitle: str,
    quantity: Quantity = SCORE,
    marked_LR: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draws means over many facts by layer and token role.

    The first row, that of position 0, stands apart. It does not set the scale, as in :func:`draw_fact_heatmap`.

    Args:
        means_LR: Means in logits; NaN, drawn as hatched grey, where there is none.
        layers: True layer indices, ascending. The first is at the left.
        roles: Position 0, then role names, from the top to the bottom.
        counts: Facts behind each role, written under its name.
        title: Wrapped, never clipped.
        subtitle: Wrapped as well.
        quantity: What the means are of.
        marked_LR: The cells that get a dot.

    Returns:
        Mode ``RGB``, deterministic, as :func:`draw_fact_heatmap` returns.

    Raises:
        ValueError: If the shape does not match ``layers``, ``roles`` and ``counts``, or a mean is infinite.
    """
    panel = Panel("", means_LR, marked_LR)
    return draw_role_heatmaps(
        [panel], layers=layers, roles=roles, counts=counts, title=title, subtitle=subtitle, quantity=quantity
    )


def draw_role_heatmaps(
    panels: Sequence[Panel],
    *,
    layers: Sequence[int],
    roles: Sequence[str],
    counts: Sequence[int],
    title: str,
    subtitle: str,
    quantity: Quantity = SCORE,
) -> Image.Image:
    """Draws several kinds of means side by side on one scale, as :func:`draw_role_heatmap` draws one.

    Args:
        panels: The means, layers by roles; NaN where there is none.
        layers: True layer indices of each.
        roles: Position 0, then role names.
        counts: Facts behind each role.
        title: Wrapped, never clipped.
        subtitle: Wrapped as well.
        quantity: What the means are of.
    """
    for _, means_LR, _ in panels:
        check_axes(means_LR, "means_LR", layers=layers, roles=roles)
        check_axes(means_LR, "means_LR", layers=layers, counts=counts)
        if np.isinf(means_LR).any():
            raise ValueError("means_LR: a mean must be finite, or NaN where there is none")
    labels = [f"{drawable(role)}\nn={count:,}" for role, count in zip(roles, counts, strict=True)]
    return _draw(panels, layers, labels, range(0), title, subtitle, quantity)


def _set_apart(grid: Image.Image, first_h: int) -> Image.Image:
    """The grid with a gap below its first row, which is `first_h` pixels high, and a frame around both parts."""
    image = Image.new("RGB", (grid.width, grid.height + APART), "white")
    image.paste(grid.crop((0, 0, grid.width, first_h)), (0, 0))
    image.paste(grid.crop((0, first_h, *grid.size)), (0, first_h + APART))
    draw = ImageDraw.Draw(image)
    for y in (first_h, first_h + APART - 1):
        draw.line((0, y, grid.width, y), fill=FRAME)
    return image


def _cell_size(n_rows: int, n_layers: int, label_lines: int) -> tuple[int, int]:
    """The width and height of a cell, in pixels."""
    label_h = label_lines * line_height(TEXT)
    # About 800 pixels wide, so that a thumbnail is legible; high enough for each row's label and the bar's.
    cell_h = max(min(36 * label_lines, 432 // n_rows), min(label_h, 1600 // n_rows), 120 // n_rows, 1)
    cell_w = max(min(36, 576 // n_layers), min(6, 800 // n_layers), 120 // n_layers, 1)
    return cell_w, cell_h


def _step(pitch: int, needed: float) -> int:
    """The interval of labelled rows or columns, ``pitch`` pixels apart, where a label needs ``needed`` pixels."""
    least = math.ceil(needed / pitch)
    return next((step for step in (1, 2, 4, 5, 8, 10, 12, 16, 20, 24, 32) if step >= least), least)


def _label(text: str, strong: bool) -> Image.Image:
    """Lines of text, flush right, as one mask; bold, and underlined clear of the sign for a space, if strong."""
    masks = [text_mask(line, TEXT, strong) for line in text.split("\n")]
    width, height = max(mask.width for mask in masks), sum(mask.height for mask in masks)
    # The same room above as the underline needs below keeps the text centred.
    block = Image.new("L", (width, height + 2 * UNDERLINE_ROOM))
    for row, mask in enumerate(masks):
        block.paste(mask, (width - mask.width, UNDERLINE_ROOM + row * mask.height))
    if strong:
        y = UNDERLINE_ROOM + height
        ImageDraw.Draw(block).line((1, y, width - 2, y), fill=255, width=2)
    return block


def _note_beyond(values_NL: NDArray[np.floating], scale: float, quantity: Quantity) -> list[Line]:
    """A line on the values beyond the scale, where there are any."""
    largest = largest_magnitude(values_NL)
    note = f"hatched: beyond the scale, |{quantity.name}| up to {short_number(largest)}"
    return [(text_mask(note, SMALL), SOFT_INK)] if largest > scale else []


def _number_layers(image: Image.Image, layers: Sequence[int], left: int, bottom: int, cell_w: int) -> None:
    """Writes as many layer numbers below the grid as there is room for."""
    draw = ImageDraw.Draw(image)
    numbers = [text_mask(str(layer), TEXT) for layer in layers]
    for column in range(0, len(layers), _step(cell_w, max(number.width for number in numbers) + GAP)):
        x = left + column * cell_w + cell_w // 2
        draw.line((x, bottom, x, bottom + 4), fill=FRAME)
        put(image, numbers[column], INK, x, bottom + GAP, (0.5, 0))


def _frame_subject(
    image: Image.Image, rows: tuple[int, int], grid: tuple[int, int, int, int], line_width: int
) -> None:
    """Frames rows of the grid, given by their upper and lower edge, and writes `subject` beside them."""
    (y0, y1), (left, top, right, bottom) = rows, grid
    ImageDraw.Draw(image).rectangle((left, y0, right, y1), outline=INK, width=line_width)
    word = text_mask("subject", SMALL).rotate(90, expand=True)
    # Beside its rows, but within the height of the grid: the last layer's number may stand below.
    middle = min(max((y0 + y1) / 2, top + word.height / 2), bottom - word.height / 2)
    put(image, word, INK, right + 3, middle, (0, 0.5))


def _draw(
    panels: Sequence[Panel],
    layers: Sequence[int],
    labels: Sequence[str],
    marked: range,
    title: str,
    subtitle: str,
    quantity: Quantity = SCORE,
) -> Image.Image:
    """Draws the whole picture.

    Args:
        panels: Values, finite or NaN, with layers first.
        layers: True layer indices of the columns of each.
        labels: Drawable text, one a row, all with as many lines.
        marked: Rows of the subject; none in a map of roles, where there is a gap below the first row.
        title: As given.
        subtitle: As given.
        quantity: What the values are.
    """
    values_NL = np.concatenate([panel.values for panel in panels]).T
    scale = scale_of(values_NL)
    n_rows, n_layers = len(values_NL), len(layers)
    label_lines = labels[0].count("\n") + 1
    label_h = label_lines * line_height(TEXT)
    # Several maps together may be wider than one, but not as wide as each alone.
    cell_w, cell_h = _cell_size(n_rows, n_layers * (len(panels) + 1) // 2, label_lines)
    grids = [_grid(panel, scale, cell_w, cell_h, is_apart=not marked) for panel in panels]
    grid_w, grid_h = grids[0].size
    apart = 0 if marked else APART
    bar = colour_bar(scale, grid_h, quantity)
    step = _step(cell_h, label_h)
    # Where only some rows are labelled, the first row of the subject is one of them.
    row_labels = {row: _label(labels[row], row in marked) for row in range(marked.start % step, n_rows, step)}

    left = PAD + max(label.width for label in row_labels.values()) + GAP
    right = bar.width + PAD
    grids_w = len(grids) * (grid_w + PANEL_GAP) - PANEL_GAP
    width = max(MIN_WIDTH, left + grids_w + right)
    left += (width - left - grids_w - right) // 2
    headline = heading(title, subtitle, width)
    names = [[(text_mask(line, TEXT), INK) for line in wrap(panel.name, TEXT, grid_w)] for panel in panels]
    names_h = max(map(total_height, names)) + GAP if any(panel.name for panel in panels) else 0
    footing = [(text_mask("layer", TEXT), INK), *_note_beyond(values_NL, scale, quantity)]
    top = PAD + total_height(headline) + PAD + names_h
    bottom = top + grid_h
    foot = bottom + GAP + line_height(TEXT)
    height = foot + total_height(footing) + PAD

    image = Image.new("RGB", (width, height), "white")
    image.paste(bar, (left + grids_w, top - SPILL))
    for row, label in row_labels.items():
        colour = INK if row in marked else SOFT_INK
        y = top + row * cell_h + cell_h // 2 + (apart if row else 0)
        put(image, label, colour, left - GAP, y, (1, 0.5))
    for place, (grid, name) in enumerate(zip(grids, names, strict=True)):
        x = left + place * (grid_w + PANEL_GAP)
        image.paste(grid, (x, top))
        ImageDraw.Draw(image).rectangle((x - 1, top - 1, x + grid_w, bottom), outline=FRAME)
        _number_layers(image, layers, x, bottom, cell_w)
        if marked:
            rows = top + marked.start * cell_h - 1, top + marked.stop * cell_h
            _frame_subject(image, rows, (x - 1, top, x + grid_w, bottom), 2 if cell_h > 8 else 1)
        if names_h:
            put_lines(image, name, x + grid_w / 2, top - GAP - total_height(name), 0.5)
    put_lines(image, headline, PAD, PAD, 0)
    put_lines(image, footing, left + grids_w / 2, foot, 0.5)
    return image


def _grid(panel: Panel, scale: float, cell_w: int, cell_h: int, *, is_apart: bool) -> Image.Image:
    """The cells of a map with their dots; with a gap below the first row where that is apart."""
    grid = draw_cells(panel.values.T, scale, cell_w, cell_h)
    if panel.marked is not None:
        mark_cells(grid, panel.marked.T, cell_w, cell_h)
    return _set_apart(grid, cell_h) if is_apart else grid
