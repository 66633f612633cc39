"""Estimated scores against exact effects, a point for each cell: how far the estimates can be trusted, to look at.

In the look of the heatmaps, with Pillow alone.

Shape suffixes: N points, A the two axes (score to the right, effect upwards), C colour channels, Y and X pixels.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_attr.views.labels import line_height, text_mask
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

SIDE = 441  # of the square, pixels; odd, so that zero is the middle of a pixel
MIDDLE = SIDE // 2
TICK = 5
MIN_PITCH = 44  # of ticks: at most five on each side of zero
ZERO = (208, 208, 208)  # the lines through it
BAR_GAP, BAR_WIDTH, BAR_HEIGHT, STEP_HEIGHT = 22, 16, 240, 20
MAX_NAMED = 12  # layers that each have their number beside the colour bar

# The scale takes in what is no larger than so many times this percentile of the magnitudes.
PERCENTILE, REACH = 99, 1.5
MARGIN = 1.05  # for the marks of the outermost points
PARTS = 4  # places in a pixel, each way, at which marks can stand
TRIANGLE_RADIUS, TRIANGLE_OPACITY = 2.5, 0.9
DIAGONAL_OPACITY = 0.65

# matplotlib's viridis, evenly lighter also for the colour-blind; without its last fifth, which is lost on white.
ANCHORS = ("440154", "482979", "3e4c8a", "306a8e", "24868e", "1fa187", "3dbc74", "7ad151")


def draw_scatter(
    scores_N: NDArray[np.floating],
    effects_N: NDArray[np.floating],
    layers_N: NDArray[np.integer],
    *,
    title: str,
    subtitle: str,
) -> Image.Image:
    """Scores to the right, exact effects upwards, on one linear scale: what is estimated well is on the diagonal.

    The scale is symmetric and ends with the largest magnitude, of a score or an effect, that is at most 1.5 times
    the 99th percentile of those other than 0: a few cells, such as those of an attention sink, are often many
    times as large as the rest, and would leave nothing of it to be seen. Points beyond are triangles at the edge,
    pointing outwards, with their number and the largest magnitude in a note. Of up to 50 points, too few for a
    percentile to mean anything, all are within.

    Points are smaller and more transparent the more there are, so that where they are dense it is darker. They are
    drawn in an order that mixes the layers, always the same: none lies on top of the others.

    Args:
        scores_N: estimates in logits, finite; at least one.
        effects_N: exact effects of the same cells in logits, finite.
        layers_N: true layer indices of the same cells. Colours follow their order, whatever lies between them.
        title: wrapped, never clipped.
        subtitle: wrapped as well.

    Returns:
        Mode ``RGB``, deterministic; ``np.asarray`` of it is the HWC uint8 array that TensorBoard takes.

    Raises:
        ValueError: if the shapes differ, there is no point, or a number is not finite.
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
    _draw_marks(field, values_AN / limit, colours_NC)
    field.paste(INK, mask=_diagonal())

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
    """Where the scale ends, given the larger magnitude of each point; 1 where all are 0."""
    # Cells that can have no effect, such as those of the last layer at tokens before the last, say nothing.
    sizes_N = sizes_N[sizes_N > 0]
    if not len(sizes_N):
        return 1.0
    usual = np.percentile(sizes_N, PERCENTILE, method="nearest")
    return MARGIN * float(sizes_N[sizes_N <= REACH * usual].max())


def _ticks(limit: float) -> dict[int, Image.Image]:
    """Round numbers within the scale, as near to each other as their texts allow, by pixels from the middle."""
    exponent = math.floor(math.log10(limit)) - 1
    units = limit / 10.0**exponent
    for step in (5, 10, 20, 50):
        most = math.floor(units / step)
        # Counted in whole units: multiples of 0.1 do not add up to 1.
        values = [float(f"{place * step}e{exponent}") for place in range(-most, most + 1)]
        # The last digit that differs: of the whole units if the step is 5, of tens of them otherwise.
        form = f".{max(0, -exponent - (step > 5))}f" if 1e-3 <= limit < 1e5 else f".{int(step == 5)}e"
        masks = [text_mask(_tick_label(value, form), TEXT) for value in values]
        if step / units * SIDE / 2 >= max(MIN_PITCH, GAP + max(mask.width for mask in masks)):
            break
    return {round(value / limit * SIDE / 2): mask for value, mask in zip(values, masks, strict=True)}


def _tick_label(value: float, form: str) -> str:
    """As `short_number` writes, with a sign if negative."""
    mantissa, *exponent = f"{value:{form}}".split("e")
    text = "e".join([mantissa, *(str(int(part)) for part in exponent)])
    return text.replace("-", "\N{MINUS SIGN}") if value else "0"


def _colours(count: int) -> NDArray[np.uint8]:
    """RGB for each of so many layers, from the first to the last."""
    anchors = np.array([list(bytes.fromhex(anchor)) for anchor in ANCHORS], dtype=float)
    at, stops = np.linspace(0, 1, count), np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(at, stops, channel).round() for channel in anchors.T], axis=1).astype(np.uint8)


def _draw_marks(field: Image.Image, places_AN: NDArray[np.floating], colours_NC: NDArray[np.uint8]) -> None:
    """The points, given with the edges of the field at -1 and 1, and triangles for those beyond."""
    count = places_AN.shape[1]
    radius = max(4.4 - 0.65 * math.log10(count), 1.5)
    opacity = max(0.95 - 0.1 * math.log10(count), 0.5)
    outward_AN = np.where(np.abs(places_AN) > 1, np.sign(places_AN), 0)
    # As far from the edge as a triangle's tip is from its centre.
    room_N = np.where(outward_AN.any(0), 2 * TRIANGLE_RADIUS, 0)
    pixels_AN = np.clip((1 + places_AN * [[1], [-1]]) * SIDE / 2, room_N, SIDE - room_N)
    whole_AN, part_AN = np.divmod((pixels_AN * PARTS).round(), PARTS)
    rows_N = np.concatenate([whole_AN, part_AN, outward_AN, colours_NC.T]).T.astype(int)
    for x, y, part_x, part_y, right, up, *colour in np.random.default_rng(0).permutation(rows_N).tolist():
        mark = _triangle(right, up, part_x, part_y) if right or up else _disc(radius, opacity, part_x, part_y)
        field.paste(tuple(colour), (x - mark.width // 2, y - mark.height // 2), mark)


@lru_cache(maxsize=256)
def _disc(radius: float, opacity: float, part_x: int, part_y: int) -> Image.Image:
    """A mask for a point whose centre is so many parts from the corner of the mask's middle pixel."""
    x_X, y_Y1 = _offsets(radius, part_x, part_y)
    return _mask(np.hypot(x_X, y_Y1) - radius, opacity)


@lru_cache(maxsize=256)
def _triangle(right: int, up: int, part_x: int, part_y: int) -> Image.Image:
    """Likewise one that points to the right and up, each -1, 0 or 1; equilateral."""
    x_X, y_Y1 = _offsets(2 * TRIANGLE_RADIUS, part_x, part_y)
    tip = math.atan2(-up, right)
    distances = [
        math.cos(side) * x_X + math.sin(side) * y_Y1
        for side in (tip - math.pi / 3, tip + math.pi / 3, tip + math.pi)
    ]
    return _mask(np.max(distances, axis=0) - TRIANGLE_RADIUS, TRIANGLE_OPACITY)


def _offsets(reach: float, part_x: int, part_y: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """How far the middles of a mask's pixels are from the centre of the mark, to the right and downwards."""
    half = math.ceil(reach) + 1
    middles = np.arange(-half, half + 1) + 0.5
    return middles - part_x / PARTS, (middles - part_y / PARTS)[:, None]


def _mask(distance_YX: NDArray[np.floating], opacity: float) -> Image.Image:
    """A shape, antialiased, given how far outside of it the middle of each pixel is."""
    return Image.fromarray((255 * opacity * np.clip(0.5 - distance_YX, 0, 1)).round().astype(np.uint8))


def _diagonal() -> Image.Image:
    """The line of equal values as a mask."""
    at = np.arange(SIDE)
    return _mask(np.abs(at + at[:, None] - (SIDE - 1)) / math.sqrt(2) - 0.5, DIAGONAL_OPACITY)


def _legend(layers: list[int]) -> Image.Image:
    """The layers' colours, the lowest at the foot; numbered each, or the first and the last if they are many."""
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
