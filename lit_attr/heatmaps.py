"""Arrays to pictures: layers upwards, tokens or roles to the right, one signed colour scale centred on zero.

Drawn with Pillow alone, in milliseconds each, so that drawing many adds little to a run.

Shape suffixes: L layers, T tokens, R roles, C columns (tokens or roles), H and W pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from lit_attr.labels import drawable, line_height, text_mask, token_label, wrap

TEXT, TITLE, SMALL = 16, 20, 14  # font sizes, pixels
PAD, GAP = 18, 6
SPILL = line_height(TEXT) // 2 + 1  # half a line, which the first and last number of an axis stand out by
MIN_WIDTH = 480
BAR_WIDTH = 16
UNDERLINE_ROOM = 3
INK, SOFT_INK, FRAME, GRID = (24, 24, 24), (84, 84, 84), (150, 150, 150), (232, 232, 232)
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
    """One fact: the score of every layer at every token.

    The scale is symmetric and set by the largest magnitude at any token but the first: position 0 is an attention
    sink, often many times as large as the rest. Its cells are drawn all the same, hatched where they exceed the
    scale, with the true maximum in a note. Where nothing else is non-zero, position 0 sets the scale after all.

    Args:
        scores_LT: signed finite scores in logits; rows as ``layers``, columns as ``tokens``.
        layers: true layer indices, ascending; any subset of the model's. The first is drawn at the bottom.
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
    _check(scores_LT, "scores_LT", layers=layers, tokens=tokens)
    if not np.isfinite(scores_LT).all():
        raise ValueError("scores_LT: every score must be finite")
    start, stop = subject_span
    if not 0 <= start < stop <= len(tokens):
        raise ValueError(f"subject_span: {subject_span} is not a stretch of the {len(tokens)} tokens")
    labels = [_label([token_label(token)], start <= at < stop) for at, token in enumerate(tokens)]
    scale = _scale(scores_LT[:, 1:]) or _scale(scores_LT) or 1.0
    return _draw(scores_LT, scale, layers, labels, subject_span, ("token", title, subtitle))


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
        layers: true layer indices, ascending. The first is drawn at the bottom.
        roles: role names, in the order to be drawn in.
        counts: facts behind each role, written under its name.
        title: wrapped, never clipped.
        subtitle: wrapped as well.

    Returns:
        Mode ``RGB``, deterministic, as :func:`draw_fact_heatmap` returns.

    Raises:
        ValueError: if the shape does not match ``layers``, ``roles`` and ``counts``, or a mean is infinite.
    """
    _check(means_LR, "means_LR", layers=layers, roles=roles)
    _check(means_LR, "means_LR", layers=layers, counts=counts)
    if np.isinf(means_LR).any():
        raise ValueError("means_LR: a mean must be finite, or NaN where its role never occurs")
    texts = [[*drawable(role).split(" "), f"n={count:,}"] for role, count in zip(roles, counts, strict=True)]
    height = max(map(len, texts))
    labels = [_label(lines + [""] * (height - len(lines))) for lines in texts]
    return _draw(means_LR, _scale(means_LR) or 1.0, layers, labels, None, ("token role", title, subtitle))


def _check(values: NDArray[np.floating], name: str, **axes: Sequence[object]) -> None:
    expected = tuple(map(len, axes.values()))
    if values.shape != expected or 0 in expected:
        raise ValueError(f"{name}: shape {values.shape}, but {' by '.join(axes)} is {expected}, at least one each")


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


def _number(size: float) -> str:
    """A positive number with three significant digits, scientific outside 0.001 … 100,000."""
    if 1e-3 <= size < 1e5:
        return f"{size:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    mantissa, exponent = f"{size:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def _step(pitch: int, needed: float) -> int:
    """Label every how many-th row or column, ``pitch`` pixels apart, when a label takes ``needed``."""
    least = math.ceil(needed / pitch)
    return next((step for step in (1, 2, 4, 5, 8, 10, 12, 16, 20, 24, 32) if step >= least), least)


def _label(lines: Sequence[str], strong: bool = False) -> Image.Image:
    """Lines of text, centred, as one mask; if strong, bold and underlined, clear of the sign for a space."""
    masks = [text_mask(line, TEXT, strong) for line in lines]
    width, height = max(mask.width for mask in masks), sum(mask.height for mask in masks)
    block = Image.new("L", (width, height + UNDERLINE_ROOM))
    for row, mask in enumerate(masks):
        block.paste(mask, ((width - mask.width) // 2, row * mask.height))
    if strong:
        ImageDraw.Draw(block).line((1, height, width - 2, height), fill=255, width=2)
    return block


def _draw(
    values_LC: NDArray[np.floating],
    scale: float,
    layers: Sequence[int],
    labels: Sequence[Image.Image],
    marked: tuple[int, int] | None,
    words: tuple[str, str, str],
) -> Image.Image:
    """The whole picture: the parts drawn one by one, then put together.

    Args:
        values_LC: finite or NaN.
        scale: magnitude that gets the deepest colour.
        layers: true layer indices of the rows.
        labels: one mask a column.
        marked: columns of the subject, half-open, or None.
        words: name of the columns' axis, title and subtitle.
    """
    x_title, title, subtitle = words
    n_rows, n_columns = values_LC.shape
    cell_w, angle = _column_layout(n_columns, max(label.width for label in labels), labels[0].height)
    cell_h = max(min(36, 640 // n_rows), min(8, 1000 // n_rows), 120 // n_rows, 1)
    grid = _grid(values_LC, scale, cell_w, cell_h)
    layer_axis, bar = _layer_axis(layers, cell_h), _colour_bar(scale, grid.height)
    column_axis, overhang = _column_axis(labels, cell_w, angle, marked or (0, 0))

    left = PAD + max(layer_axis.width, overhang)
    right = bar.width + PAD
    width = max(MIN_WIDTH, left + grid.width + right)
    left += (width - left - grid.width - right) // 2
    heading = [
        *((text_mask(line, TITLE), INK) for line in wrap(drawable(title), TITLE, width - 2 * PAD)),
        *((text_mask(line, SMALL), SOFT_INK) for line in wrap(drawable(subtitle), SMALL, width - 2 * PAD)),
    ]
    footing = [(text_mask(x_title, TEXT), INK)]
    if _scale(values_LC) > scale:
        note = f"hatched: beyond the scale, |score| up to {_number(_scale(values_LC))}"
        footing.append((text_mask(note, SMALL), SOFT_INK))
    top = PAD + sum(mask.height for mask, _ in heading) + PAD + (line_height(SMALL) if marked else 0)
    bottom = top + grid.height
    foot = bottom + GAP + column_axis.height + GAP
    height = foot + sum(mask.height for mask, _ in footing) + PAD

    image = Image.new("RGB", (width, height), "white")
    image.paste(layer_axis, (left - layer_axis.width, top - SPILL))
    image.paste(bar, (left + grid.width, top - SPILL))
    image.paste(column_axis, (left - overhang, bottom + GAP))
    image.paste(grid, (left, top))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, left + grid.width, bottom), outline=FRAME)
    if marked:
        x0, x1 = left + marked[0] * cell_w - 1, left + marked[1] * cell_w
        draw.rectangle((x0, top - 1, x1, bottom), outline=INK, width=2 if cell_w > 8 else 1)
        mask = text_mask("subject", SMALL)
        image.paste(INK, ((x0 + x1 - mask.width) // 2, top - mask.height - 3), mask)
    y = PAD
    for mask, colour in heading:
        image.paste(colour, (PAD, y), mask)
        y += mask.height
    y = foot
    for mask, colour in footing:
        image.paste(colour, (left + (grid.width - mask.width) // 2, y), mask)
        y += mask.height
    return image


def _column_layout(n_columns: int, label_w: int, label_h: int) -> tuple[int, int]:
    """Width of a column and the angle of its labels: level if they fit, else 45°, else 90°."""
    cell_w = max(min(72, 760 // n_columns), min(label_h, 1340 // n_columns), 1)
    if label_w + 10 <= max(cell_w, 800 // n_columns):
        return max(cell_w, label_w + 10), 0
    return cell_w, 45 if cell_w * math.sqrt(0.5) >= 0.85 * label_h else 90


def _grid(values_LC: NDArray[np.floating], scale: float, cell_w: int, cell_h: int) -> Image.Image:
    """The cells, layer 0 at the bottom; those over the scale and the empty ones hatched."""
    n_rows, n_columns = values_LC.shape
    size = (n_columns * cell_w, n_rows * cell_h)
    x, y = ((np.arange(side) % 8).astype(np.uint8) for side in size)
    stripes = Image.fromarray(((x + y[:, None]) % 8 == 0).astype(np.uint8) * 255)

    def enlarge(cells: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(cells[::-1]).resize(size, Image.Resampling.NEAREST)

    image = enlarge(_colours(values_LC, scale))
    for which, colour in ((np.abs(values_LC) > scale, CLIPPED_HATCH), (np.isnan(values_LC), EMPTY_HATCH)):
        if which.any():
            image.paste(colour, mask=ImageChops.darker(enlarge(which.astype(np.uint8) * 255), stripes))
    if min(cell_h, cell_w) >= 8:
        draw = ImageDraw.Draw(image)
        for at in range(0, size[0], cell_w):
            draw.line((at, 0, at, size[1]), fill=GRID)
        for at in range(0, size[1], cell_h):
            draw.line((0, at, size[0], at), fill=GRID)
    return image


def _layer_axis(layers: Sequence[int], cell_h: int) -> Image.Image:
    """The axis that ends at the grid's left edge; reaches SPILL beyond the grid above and below."""
    name = text_mask("layer", TEXT).rotate(90, expand=True)
    numbers = [text_mask(str(layer), TEXT) for layer in layers]
    grid_h = cell_h * len(layers)
    width = name.width + GAP + max(number.width for number in numbers) + GAP
    image = Image.new("RGB", (width, grid_h + 2 * SPILL), "white")
    image.paste(INK, (0, SPILL + (grid_h - name.height) // 2), name)
    step = _step(cell_h, 1.5 * line_height(TEXT))
    for row, number in enumerate(numbers):
        if row % step == 0:
            y = SPILL + grid_h - round((row + 0.5) * cell_h)
            ImageDraw.Draw(image).line((width - 4, y, width, y), fill=FRAME)
            image.paste(INK, (width - GAP - number.width, y - number.height // 2), number)
    return image


def _column_axis(
    labels: Sequence[Image.Image], cell_w: int, angle: int, marked: tuple[int, int]
) -> tuple[Image.Image, int]:
    """The columns' labels, and how far they reach to the left of the grid."""
    height = labels[0].height
    step = _step(cell_w, 0.85 * height) if angle else 1
    turned = {
        column: label.rotate(angle, Image.Resampling.BICUBIC, expand=True)
        for column, label in enumerate(labels)
        if column % step == 0
    }
    # The middle of a slanted label's end stands under the tick; of the others, the middle.
    slant = round(height * math.sqrt(0.5) / 2)
    starts = {
        column: round((column + 0.5) * cell_w) - (label.width - slant if angle == 45 else label.width // 2)
        for column, label in turned.items()
    }
    overhang = max(0, -min(starts.values()))
    width = max(starts[column] + label.width for column, label in turned.items())
    image = Image.new("RGB", (overhang + width, max(label.height for label in turned.values())), "white")
    for column, label in turned.items():
        colour = INK if marked[0] <= column < marked[1] else SOFT_INK
        image.paste(colour, (overhang + starts[column], 0), label)
    return image, overhang


def _colour_bar(scale: float, grid_h: int) -> Image.Image:
    """The scale that begins at the grid's right edge; reaches SPILL beyond the grid above and below."""
    name = text_mask("score (logits)", TEXT).rotate(90, expand=True)
    numbers = [text_mask(text, TEXT) for text in ("+" + _number(scale), "0", "\N{MINUS SIGN}" + _number(scale))]
    bar, text = 24, 24 + BAR_WIDTH + GAP
    width = text + max(number.width for number in numbers) + GAP + name.width
    image = Image.new("RGB", (width, grid_h + 2 * SPILL), "white")
    draw = ImageDraw.Draw(image)
    ramp = _colours(np.linspace(1, -1, grid_h)[:, None], 1.0).repeat(BAR_WIDTH, axis=1)
    image.paste(Image.fromarray(ramp), (bar, SPILL))
    draw.rectangle((bar - 1, SPILL - 1, bar + BAR_WIDTH, SPILL + grid_h), outline=FRAME)
    for number, y in zip(numbers, (0, grid_h // 2, grid_h - 1), strict=True):
        draw.line((bar + BAR_WIDTH, SPILL + y, bar + BAR_WIDTH + 3, SPILL + y), fill=FRAME)
        image.paste(INK, (text, SPILL + y - number.height // 2), number)
    image.paste(INK, (width - name.width, SPILL + (grid_h - name.height) // 2), name)
    return image
