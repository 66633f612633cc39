"""Scatter plots of scores against the exact effects that they estimate, a point for each cell.

They look like the heatmaps, and Pillow alone draws them.

Shape suffixes: N points, A the two axes (score to the right, effect upwards), C colour channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_attr.views.labels import line_height, text_mask
from lit_attr.views.marks import SIDE, diagonal, draw_marks
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

MIDDLE = SIDE // 2
TICK = 5
MIN_PITCH = 44  # of ticks: at most five on each side of zero
ZERO = (208, 208, 208)  # the lines through zero
BAR_GAP, BAR_WIDTH, BAR_HEIGHT, STEP_HEIGHT = 22, 16, 240, 20
MAX_NAMED = 12  # up to so many layers are all numbered beside the colour bar

# The scale includes what is at most REACH times this percentile of the magnitudes.
PERCENTILE, REACH = 99, 1.5
MARGIN = 1.05  # for the marks of the outermost points

# matplotlib's viridis, which colour-blind readers see as uniform too, without its last fifth, too pale on white.
ANCHORS = ("440154", "482979", "3e4c8a", "306a8e", "24868e", "1fa187", "3dbc74", "7ad151")


def draw_scatter(
    scores_N: NDArray[np.floating],
    effects_N: NDArray[np.floating],
    layers_N: NDArray[np.integer],
    *,
    title: str,
    subtitle: str,
) -> Image.Image:
    """Draws scores to the right and exact effects upwards on one linear scale; exact scores lie on the diagonal.

    The scale is symmetric and ends at the largest magnitude, of a score or an effect, that is at most 1.5 times
    the 99th percentile of the non-zero ones: a few cells, such as those of an attention sink, are often many times
    as large as the rest and would leave no room for it. Points beyond the scale are triangles at the edge that
    point outwards, with their number and the largest magnitude in a note. Up to 50 points, too few for a
    percentile, are all within the scale.

    The more points there are, the smaller and more transparent they are, so that dense regions are darker. They
    are drawn in a fixed random order, so that no layer lies on top of the others.

    Args:
        scores_N: Estimates in logits, finite; at least one.
        effects_N: Exact effects of the same cells in logits, finite.
        layers_N: True layer indices of the same cells. Colours follow their order and ignore gaps between them.
        title: Wrapped, never clipped.
        subtitle: Wrapped as well.

    Returns:
        Mode ``RGB``, deterministic; ``np.asarray`` of it is the HWC uint8 array that TensorBoard takes.

    Raises:
        ValueError: If the shapes differ, there is no point, or a number is not finite.
    """
    for name, values_N in (("scores_N", scores_N), ("effects_N", effects_N)):
        check_axes(values_N, name, layers_N=layers_N.tolist())
        if not np.isfinite(values_N).all():
            raise ValueError(f"{name}: every number must be finite")
    values_AN = np.stack([scores_N, effects_N]).astype(float)
    named, rank_N = np.unique(layers_N, return_inverse=True)
    layers = named.tolist()
    limit = _limit(np.abs(values_AN).max(0))
    beyond_N = (np.abs(values_AN) > limit).any(0)

    field = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(field)
    draw.line((0, MIDDLE, SIDE, MIDDLE), fill=ZERO)
    draw.line((MIDDLE, 0, MIDDLE, SIDE), fill=ZERO)
    colours_NC = _colours(len(layers))[rank_N]
    draw_marks(field, values_AN / limit, colours_NC)
    field.paste(INK, mask=diagonal())

    ticks = _ticks(limit)
    legend = _legend(layers)
    effect_name = text_mask("exact effect (logits)", TEXT).rotate(90, expand=True)
    numbers_w = max(mask.width for mask in ticks.values())
    left = PAD + effect_name.width + GAP + numbers_w + GAP + 1
    width = left + SIDE + BAR_GAP + legend.width + PAD
    headline = heading(title, subtitle, width)
    footing = [(text_mask("score (logits)", TEXT), INK)]
    if beyond_N.any():
        most = short_number(float(np.abs(values_AN).max()))
        note = f"triangles: {beyond_N.sum():,} beyond the scale, magnitudes up to {most}"
        footing.append((text_mask(note, SMALL), SOFT_INK))
    top = PAD + total_height(headline) + PAD
    bottom = top + SIDE
    foot = bottom + GAP + line_height(TEXT)
    height = foot + total_height(footing) + PAD

    image = Image.new("RGB", (width, height), "white")
    image.paste(field, (left, top))
    image.paste(legend, (left + SIDE + BAR_GAP, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, left + SIDE, bottom), outline=FRAME)
    for at, mask in ticks.items():
        x, y = left + MIDDLE + at, top + MIDDLE - at
        draw.line((x, bottom, x, bottom + TICK), fill=FRAME)
        draw.line((left - 1 - TICK, y, left - 1, y), fill=FRAME)
        put(image, mask, INK, x + 0.5, bottom + GAP, (0.5, 0))
        put(image, mask, INK, left - 1 - GAP, y + 0.5, (1, 0.5))
    put(image, effect_name, INK, PAD, top + SIDE / 2, (0, 0.5))
    put(image, text_mask("equal", SMALL), SOFT_INK, left + SIDE, top - 1, (1, 1))
    put_lines(image, headline, PAD, PAD, 0)
    put_lines(image, footing, left + SIDE / 2, foot, 0.5)
    return image


def _limit(sizes_N: NDArray[np.floating]) -> float:
    """The end of the scale, given the larger magnitude of each point; 1 where all are 0."""
    # Cells that cannot have an effect, such as the last layer's before the last token, would lower the percentile.
    sizes_N = sizes_N[sizes_N > 0]
    if not len(sizes_N):
        return 1.0
    usual = np.percentile(sizes_N, PERCENTILE, method="nearest")
    return MARGIN * float(sizes_N[sizes_N <= REACH * usual].max())


def _ticks(limit: float) -> dict[int, Image.Image]:
    """Labels of round numbers, as dense as they fit, keyed by their distance from the middle in pixels."""
    exponent = math.floor(math.log10(limit)) - 1
    units = limit / 10.0**exponent
    for step in (5, 10, 20, 50):
        most = math.floor(units / step)
        # Whole units: multiples of 0.1 do not add up to 1.
        values = [float(f"{place * step}e{exponent}") for place in range(-most, most + 1)]
        # The last digit that differs is that of the units if the step is 5, else that of the tens.
        form = f".{max(0, -exponent - (step > 5))}f" if 1e-3 <= limit < 1e5 else f".{int(step == 5)}e"
        masks = [text_mask(_tick_label(value, form), TEXT) for value in values]
        if step / units * SIDE / 2 >= max(MIN_PITCH, GAP + max(mask.width for mask in masks)):
            break
    return {round(value / limit * SIDE / 2): mask for value, mask in zip(values, masks, strict=True)}


def _tick_label(value: float, form: str) -> str:
    """A number as `short_number` writes it, with a sign if negative."""
    mantissa, *exponent = f"{value:{form}}".split("e")
    text = "e".join([mantissa, *(str(int(part)) for part in exponent)])
    return text.replace("-", "\N{MINUS SIGN}") if value else "0"


def _colours(count: int) -> NDArray[np.uint8]:
    """RGB for each layer, from the first to the last."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=float)
    at, stops = np.linspace(0, 1, count), np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(at, stops, channel).round() for channel in anchors.T], axis=1).astype(np.uint8)


def _legend(layers: list[int]) -> Image.Image:
    """The layers' colours, the lowest layer at the foot; of many layers the first and the last are numbered."""
    name = text_mask("layer", TEXT)
    numbers = [text_mask(str(layer), TEXT) for layer in layers]
    height = STEP_HEIGHT * len(layers) if len(layers) <= MAX_NAMED else BAR_HEIGHT
    top = name.height + GAP
    text = BAR_WIDTH + 2 * GAP
    image = Image.new("RGB", (max(name.width, text + max(number.width for number in numbers)), SIDE), "white")
    put(image, name, INK, 0, 0, (0, 0))
    ramp = Image.fromarray(_colours(len(layers))[::-1, None])
    image.paste(ramp.resize((BAR_WIDTH, height), Image.Resampling.NEAREST), (1, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top - 1, BAR_WIDTH + 1, top + height), outline=FRAME)
    for place in range(len(layers)) if len(layers) <= MAX_NAMED else (0, len(layers) - 1):
        y = top + height * (1 - (place + 0.5) / len(layers))
        put(image, numbers[place], INK, text, y, (0, 0.5))
    return image
