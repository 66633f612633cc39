"""Arrays to pictures: tokens or roles downwards, layers to the right, one signed colour scale centred on zero.

The orientation of ROME's causal traces, so that the two can be read side by side. Drawn with Pillow alone, in
milliseconds each, so that drawing many adds little to a run.

Shape suffixes: L layers, T tokens, R roles, N rows of the picture (tokens or roles).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from lit_attr.views.labels import drawable, line_height, text_mask, token_label
from lit_attr.views.sheet import (
    FRAME,
    GAP,
    INK,
    PAD,
    SMALL,
    SOFT_INK,
    TEXT,
    check_axes,
    heading,
    put,
    put_lines,
    short_number,
    total_height,
)

SPILL = line_height(TEXT) // 2 + 1  # half a line, which the first and last number of the bar stand out by
MIN_WIDTH = 480
BAR_GAP, BAR_WIDTH = 28, 16  # the word "subject" stands in the gap
UNDERLINE_ROOM = 3
GRID = (232, 232, 232)
EMPTY, EMPTY_HATCH, CLIPPED_HATCH = (238, 238, 238), (196, 196, 196), (255, 255, 255)

# ColorBrewer's RdBu from blue to red, safe for the colour-blind; its middle made white, its ends less black.
ANCHORS = (
    "0f4784",
    "2166ac",
    "4393c3",
    "92c5de",
    "d1e5f0",
    "ffffff",
    "fddbc7",
    "f4a582",
    "d6604d",
    "b2182b",
    "860d27",
)
HALF_STEPS = 255


def draw_fact_heatmap(
    scores_LT: NDArray[np.floating],
    *,
    layers: Sequence[int],
    tokens: Sequence[str],
    subject_span: tuple[int, int],
    title: str,
    subtitle: str,
) -> Image.Image:
    """One fact: the score of every layer at every token, the first token at the top.

    The scale is symmetric and set by the largest magnitude at any token but the first: position 0 is an attention
    sink, often many times as large as the rest. Its cells are drawn all the same, hatched where they exceed the
    scale, with the true maximum in a note. Where nothing else is non-zero, position 0 sets the scale after all.

    Args:
        scores_LT: signed finite scores in logits, ``layers`` by ``tokens``; drawn transposed.
        layers: true layer indices, ascending; any subset of the model's. The first is drawn at the left.
        tokens: token texts as decoded, leading spaces included.
        subject_span: first subject token and the one after the last, as indices into ``tokens``.
        title: such as ``The capital of Spain is →  Madrid / Paris``; wrapped, never clipped.
        subtitle: such as ``logit difference +4.70 · MLP gradient × activation``; wrapped as well.

    Returns:
        Mode ``RGB``, deterministic; ``np.asarray`` of it is the HWC uint8 array that TensorBoard takes.

    Raises:
        ValueError: if the shape does not match ``layers`` and ``tokens``, a score is not finite, or the span is
            empty or reaches beyond the tokens.
    """
    check_axes(scores_LT, "scores_LT", layers=layers, tokens=tokens)
    if not np.isfinite(scores_LT).all():
        raise ValueError("scores_LT: every score must be finite")
    start, stop = subject_span
    if not 0 <= start < stop <= len(tokens):
        raise ValueError(f"subject_span: {subject_span} is not a stretch of the {len(tokens)} tokens")
    scale = _scale(scores_LT[:, 1:]) or _scale(scores_LT) or 1.0
    labels = [token_label(token) for token in tokens]
    return _draw(scores_LT.T, scale, layers, labels, range(start, stop), title, subtitle)


def draw_role_heatmap(
    means_LR: NDArray[np.floating],
    *,
    layers: Sequence[int],
    roles: Sequence[str],
    counts: Sequence[int],
    title: str,
    subtitle: str,
) -> Image.Image:
    """Many facts: the mean score of every layer at every token role.

    Args:
        means_LR: signed mean scores in logits; NaN, drawn as hatched grey, where a role never occurs.
        layers: true layer indices, ascending. The first is drawn at the left.
        roles: role names, in the order to be drawn in, the first at the top.
        counts: facts behind each role, written under its name.
        title: wrapped, never clipped.
        subtitle: wrapped as well.

    Returns:
        Mode ``RGB``, deterministic, as :func:`draw_fact_heatmap` returns.

    Raises:
        ValueError: if the shape does not match ``layers``, ``roles`` and ``counts``, or a mean is infinite.
    """
    check_axes(means_LR, "means_LR", layers=layers, roles=roles)
    check_axes(means_LR, "means_LR", layers=layers, counts=counts)
    if np.isinf(means_LR).any():
        raise ValueError("means_LR: a mean must be finite, or NaN where its role never occurs")
    labels = [f"{drawable(role)}\nn={count:,}" for role, count in zip(roles, counts, strict=True)]
    return _draw(means_LR.T, _scale(means_LR) or 1.0, layers, labels, range(0), title, subtitle)


def _scale(values: NDArray[np.floating]) -> float:
    """Largest magnitude; 0 if there is none."""
    return float(np.nan_to_num(np.abs(values)).max(initial=0.0))


def _colour_table() -> NDArray[np.uint8]:
    """Colours of -1 … +1 in ``2 * HALF_STEPS + 1`` rows: white in the middle one exactly."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=float)
    at, stops = np.linspace(-1, 1, 2 * HALF_STEPS + 1), np.linspace(-1, 1, len(anchors))
    channels = [np.interp(at, stops, channel).round() for channel in anchors.T]
    return np.stack(channels, axis=1).astype(np.uint8)


TABLE = _colour_table()


def _colours(values: NDArray[np.floating], scale: float) -> NDArray[np.uint8]:
    """RGB on a new last axis; magnitudes beyond ``scale`` get its end colour, NaN the empty one."""
    steps = np.nan_to_num(np.clip(values / scale, -1, 1)) * HALF_STEPS
    colours: NDArray[np.uint8] = TABLE[steps.round().astype(int) + HALF_STEPS]
    colours[np.isnan(values)] = EMPTY
    return colours


def _step(pitch: int, needed: float) -> int:
    """Label every how many-th row or column, ``pitch`` pixels apart, when a label takes ``needed``."""
    least = math.ceil(needed / pitch)
    return next((step for step in (1, 2, 4, 5, 8, 10, 12, 16, 20, 24, 32) if step >= least), least)


def _label(text: str, strong: bool) -> Image.Image:
    """Lines of text, flush right, as one mask; if strong, bold and underlined, clear of the sign for a space."""
    masks = [text_mask(line, TEXT, strong) for line in text.split("\n")]
    width, height = max(mask.width for mask in masks), sum(mask.height for mask in masks)
    # As much air above as the line takes below, so that the text stands in the middle.
    block = Image.new("L", (width, height + 2 * UNDERLINE_ROOM))
    for row, mask in enumerate(masks):
        block.paste(mask, (width - mask.width, UNDERLINE_ROOM + row * mask.height))
    if strong:
        y = UNDERLINE_ROOM + height
        ImageDraw.Draw(block).line((1, y, width - 2, y), fill=255, width=2)
    return block


def _draw(
    values_NL: NDArray[np.floating],
    scale: float,
    layers: Sequence[int],
    labels: Sequence[str],
    marked: range,
    title: str,
    subtitle: str,
) -> Image.Image:
    """The whole picture.

    Args:
        values_NL: finite or NaN.
        scale: magnitude that gets the deepest colour.
        layers: true layer indices of the columns.
        labels: drawable text, one a row, all with as many lines.
        marked: rows of the subject, if any.
        title: as given.
        subtitle: as given.
    """
    n_rows, n_layers = values_NL.shape
    label_lines = labels[0].count("\n") + 1
    label_h = label_lines * line_height(TEXT)
    # About 800 pixels wide, so that a thumbnail is legible; tall enough for every row's label, and for the bar's.
    cell_h = max(min(36 * label_lines, 432 // n_rows), min(label_h, 1600 // n_rows), 120 // n_rows, 1)
    cell_w = max(min(36, 576 // n_layers), min(6, 800 // n_layers), 120 // n_layers, 1)
    grid, bar = _grid(values_NL, scale, cell_w, cell_h), _colour_bar(scale, cell_h * n_rows)
    step = _step(cell_h, label_h)
    # Where not every row has its label, the subject's first one has.
    row_labels = {row: _label(labels[row], row in marked) for row in range(marked.start % step, n_rows, step)}

    left = PAD + max(label.width for label in row_labels.values()) + GAP
    right = bar.width + PAD
    width = max(MIN_WIDTH, left + grid.width + right)
    left += (width - left - grid.width - right) // 2
    headline = heading(title, subtitle, width)
    footing = [(text_mask("layer", TEXT), INK)]
    if _scale(values_NL) > scale:
        note = f"hatched: beyond the scale, |score| up to {short_number(_scale(values_NL))}"
        footing.append((text_mask(note, SMALL), SOFT_INK))
    top = PAD + total_height(headline) + PAD
    bottom = top + grid.height
    foot = bottom + GAP + line_height(TEXT)
    height = foot + total_height(footing) + PAD

    image = Image.new("RGB", (width, height), "white")
    image.paste(grid, (left, top))
    image.paste(bar, (left + grid.width, top - SPILL))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, left + grid.width, bottom), outline=FRAME)
    for row, label in row_labels.items():
        colour = INK if row in marked else SOFT_INK
        put(image, label, colour, left - GAP, top + row * cell_h + cell_h // 2, (1, 0.5))
    numbers = [text_mask(str(layer), TEXT) for layer in layers]
    for column in range(0, n_layers, _step(cell_w, max(number.width for number in numbers) + GAP)):
        x = left + column * cell_w + cell_w // 2
        draw.line((x, bottom, x, bottom + 4), fill=FRAME)
        put(image, numbers[column], INK, x, bottom + GAP, (0.5, 0))
    if marked:
        y0, y1 = top + marked.start * cell_h - 1, top + marked.stop * cell_h
        draw.rectangle((left - 1, y0, left + grid.width, y1), outline=INK, width=2 if cell_h > 8 else 1)
        word = text_mask("subject", SMALL).rotate(90, expand=True)
        # Beside its rows, however few, but not further down than the grid: there the last layer's number may be.
        middle = min(max((y0 + y1) / 2, top + word.height / 2), bottom - word.height / 2)
        put(image, word, INK, left + grid.width + 3, middle, (0, 0.5))
    put_lines(image, headline, PAD, PAD, 0)
    put_lines(image, footing, left + grid.width / 2, foot, 0.5)
    return image


def _grid(values_NL: NDArray[np.floating], scale: float, cell_w: int, cell_h: int) -> Image.Image:
    """The cells; those over the scale and the empty ones hatched."""
    n_rows, n_layers = values_NL.shape
    size = (n_layers * cell_w, n_rows * cell_h)
    x, y = ((np.arange(side) % 8).astype(np.uint8) for side in size)
    stripes = Image.fromarray(((x + y[:, None]) % 8 == 0).astype(np.uint8) * 255)

    def enlarge(cells: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)

    image = enlarge(_colours(values_NL, scale))
    for which, colour in ((np.abs(values_NL) > scale, CLIPPED_HATCH), (np.isnan(values_NL), EMPTY_HATCH)):
        if which.any():
            image.paste(colour, mask=ImageChops.darker(enlarge(which.astype(np.uint8) * 255), stripes))
    draw = ImageDraw.Draw(image)
    # Between cells too small for it, a line would hide more than it parts.
    for x0 in range(0, size[0], cell_w) if cell_w >= 8 else ():
        draw.line((x0, 0, x0, size[1]), fill=GRID)
    for y0 in range(0, size[1], cell_h) if cell_h >= 8 else ():
        draw.line((0, y0, size[0], y0), fill=GRID)
    return image


def _colour_bar(scale: float, grid_h: int) -> Image.Image:
    """The scale that begins at the grid's right edge; reaches SPILL beyond the grid above and below."""
    name = text_mask("score (logits)", TEXT).rotate(90, expand=True)
    numbers = [
        text_mask(text, TEXT) for text in ("+" + short_number(scale), "0", "\N{MINUS SIGN}" + short_number(scale))
    ]
    bar, text = BAR_GAP, BAR_GAP + BAR_WIDTH + GAP
    width = text + max(number.width for number in numbers) + GAP + name.width
    image = Image.new("RGB", (width, grid_h + 2 * SPILL), "white")
    draw = ImageDraw.Draw(image)
    ramp = _colours(np.linspace(1, -1, grid_h)[:, None], 1.0).repeat(BAR_WIDTH, axis=1)
    image.paste(Image.fromarray(ramp), (bar, SPILL))
    draw.rectangle((bar - 1, SPILL - 1, bar + BAR_WIDTH, SPILL + grid_h), outline=FRAME)
    for number, y in zip(numbers, (0, grid_h // 2, grid_h - 1), strict=True):
        draw.line((bar + BAR_WIDTH, SPILL + y, bar + BAR_WIDTH + 3, SPILL + y), fill=FRAME)
        put(image, number, INK, text, SPILL + y, (0, 0.5))
    put(image, name, INK, width, SPILL + grid_h / 2, (1, 0.5))
    return image
