"""Scatter plots: where points, ticks and labels stand, and what is beyond the scale."""

import numpy as np
import pytest
from PIL import ImageChops
from pixels import place, place_upright, shows

from lit_attr.views import marks, scatter, sheet
from lit_attr.views.labels import drawable, line_height, text_mask
from lit_attr.views.scatter import draw_scatter

WHITE = (255, 255, 255)
# With this point the scale is a little more than 1, and these are the ticks, unless another point is larger.
CORNER = (1.0, -1.0, 0)
TICKS = ["−1.0", "−0.5", "0", "0.5", "1.0"]


def scattered(scores_N, effects_N, layers_N, **changes):
    settings = {"title": "Scores and exact effects", "subtitle": "r = 0.93 · 64 contrasts"}
    return draw_scatter(np.asarray(scores_N), np.asarray(effects_N), np.asarray(layers_N), **(settings | changes))


def plot(*points, **changes):
    """A plot of points, each a score, an effect and a layer."""
    return scattered(*zip(*points, strict=True), **changes)


def cloud(count):
    """`CORNER` and points with no magnitude above 0.9."""
    scores_N, effects_N = np.random.default_rng(0).uniform(-0.9, 0.9, (2, count))
    return [CORNER, *zip(scores_N, effects_N, [0] * count, strict=True)]


def frame(image):
    """The frame's lines: left, top, right and bottom."""
    is_frame = (np.asarray(image) == sheet.FRAME).all(axis=2)
    columns, rows = (np.flatnonzero(is_frame.sum(axis=axis) > 300) for axis in (0, 1))
    assert len(columns) == len(rows) == 2
    return columns[0], rows[0], columns[1], rows[1]


def ticks(image):
    """The x of the ticks below the frame, and the y, upwards, of those to the left of it."""
    left, top, right, bottom = frame(image)
    is_frame = (np.asarray(image) == sheet.FRAME).all(axis=2)
    below, beside = is_frame[bottom + 2, left : right + 1], is_frame[top : bottom + 1, left - 2]
    return left + np.flatnonzero(below), top + np.flatnonzero(beside)[::-1]


def where(image, score, effect):
    """The pixel of a score and an effect; the outermost ticks are -1 and 1."""
    x, y = ticks(image)
    return round(np.interp(score, (-1, 1), x[[0, -1]])), round(np.interp(effect, (-1, 1), y[[0, -1]]))


def share(pixel, colour):
    """The opacity of a colour on white that gives the pixel; None where it has another colour."""
    covered, full = 255 - np.asarray(pixel, dtype=float), 255 - np.asarray(colour, dtype=float)
    part = covered @ full / (full @ full)
    return part if np.abs(covered - part * full).max() < 6 else None


def is_dark(image, x, y):
    return image.convert("L").getpixel((int(x), int(y))) < 150


def lightness(colours_NC, eyes=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    """CIE L*, where 100 is white, for eyes whose cones mix linear RGB as the matrix `eyes` does."""
    linear = np.where(colours_NC < 11, colours_NC / 3294, ((colours_NC / 255 + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(np.clip(linear @ np.transpose(eyes), 0, 1) @ (0.2126, 0.7152, 0.0722)) - 16


@pytest.mark.parametrize("score, effect", [(0.5, -0.25), (-0.7, 0.3), (0.1, 0.8), (-0.33, -0.62)])
def test_point_stands_at_its_score_and_its_effect(score, effect):
    image, without = plot(CORNER, (score, effect, 1)), plot(CORNER, (*CORNER[:2], 1))
    x, y = where(image, score, effect)
    assert 0.8 < share(image.getpixel((x, y)), scatter._colours(2)[1]) < 1
    changed = ImageChops.difference(image, without)
    corner = where(image, *CORNER[:2])
    changed.paste((0, 0, 0), (corner[0] - 6, corner[1] - 6, corner[0] + 7, corner[1] + 7))
    x0, y0, x1, y1 = changed.getbbox()
    assert 6 < x1 - x0 < 12 and abs((x1 - x0) - (y1 - y0)) <= 1, "only that point, and round"
    assert ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2) == pytest.approx((x, y), abs=1)


def test_points_have_subpixel_positions():
    one, other = (plot(CORNER, (0.5 + shift, -0.3, 0)) for shift in (0, 0.5 / 210))
    assert ImageChops.difference(one, other).getbbox()


@pytest.mark.parametrize("layer", range(5))
def test_point_has_the_colour_of_its_layer_in_the_legend(layer):
    points = [(0.4, -0.5 + 0.25 * at, 2 * at) for at in range(5)]
    image = plot(CORNER, *points)
    _, top, right, bottom = frame(image)
    number = place(image, (right, top, image.width, bottom), str(2 * layer))
    patch = image.getpixel((int(right + scatter.BAR_GAP + scatter.BAR_WIDTH / 2), int(number[1])))
    point = image.getpixel(where(image, *points[layer][:2]))
    assert patch == tuple(scatter._colours(5)[layer])
    assert share(point, patch) > 0.8
    assert not any(share(point, colour) for at, colour in enumerate(scatter._colours(5)) if at != layer)


# Eyes without cones for red, or for green: Machado, Oliveira & Fernandes (2009).
PROTANOPE = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPE = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


@pytest.mark.parametrize("eyes", [np.eye(3), PROTANOPE, DEUTERANOPE])
@pytest.mark.parametrize("count", [2, 12, 48, 96])
def test_layer_colours_lighten_evenly_for_all_eyes_and_stay_visible_on_white(count, eyes):
    light = lightness(scatter._colours(count), eyes)
    steps = np.diff(light)
    assert steps.min() > 0
    assert np.abs(steps - steps.mean()).max() < 0.5 * steps.mean() + 0.4, "evenly, up to rounding"
    assert light[0] < 25 and light[-1] < 80 and light[-1] - light[0] > 50


@pytest.mark.parametrize("layers, named", [([4], [4]), ([0, 5, 11], [0, 5, 11]), (range(30, 42), range(30, 42))])
def test_legend_numbers_up_to_12_layers_the_highest_at_the_top(layers, named):
    image = plot(*((1.0, 0.5, layer) for layer in layers))
    _, top, right, bottom = frame(image)
    places = [place(image, (right, top, image.width, bottom), str(layer)) for layer in named]
    assert all(places)
    heights = [y for _, y in places]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == len(heights)
    assert shows(image, (right, top, image.width, bottom), "layer")


def test_legend_numbers_the_first_and_the_last_of_more_than_12_layers():
    image = plot(*((1.0, 0.5, layer) for layer in range(30, 78)))
    _, top, right, bottom = frame(image)
    box = (right, top, image.width, bottom)
    first, last = place(image, box, "30"), place(image, box, "77")
    assert first[1] > last[1] + 200
    assert not any(shows(image, box, str(layer)) for layer in range(31, 77))
    x = int(right + scatter.BAR_GAP + scatter.BAR_WIDTH / 2)
    bar = [image.getpixel((x, y)) for y in range(int(last[1]), int(first[1]))]
    assert list(dict.fromkeys(bar)) == [tuple(colour) for colour in scatter._colours(48)[::-1]]


def test_axes_are_square_with_the_same_ticks():
    image = plot((0.2, -1.0, 0))
    left, top, right, bottom = frame(image)
    assert right - left == bottom - top > 400
    x, y = ticks(image)
    for column, row, text in zip(x, y, TICKS, strict=True):
        below = place(image, (column - 30, bottom, column + 30, bottom + 40), text)
        beside = place(image, (left - 50, row - 15, left, row + 15), text)
        assert below[0] == pytest.approx(column, abs=1)
        assert beside[1] == pytest.approx(row, abs=1)
    assert np.ptp(np.diff(x)) <= 1 and list(x - left) == list(bottom - y)


def test_axes_have_names_and_units():
    image = plot(CORNER)
    left, top, right, bottom = frame(image)
    x, _ = place(image, (0, bottom, *image.size), "score (logits)")
    assert x == pytest.approx((left + right) / 2, abs=1)
    x, y = place_upright(image, "exact effect (logits)")
    assert x < left and y == pytest.approx((top + bottom) / 2, abs=1)


def test_diagonal_is_thin_and_dark():
    image = plot((-0.9, 0.8, 0), CORNER)
    left, top, right, bottom = frame(image)
    for step in range(3, right - left - 3, 7):
        assert is_dark(image, left + step, bottom - step)
        assert not any(is_dark(image, left + step + aside, bottom - step) for aside in (-3, -2, 2, 3))
    for value in (-0.5, 0.5):
        assert is_dark(image, *where(image, value, value))
    name = place(image, (0, 0, *image.size), "equal", sheet.SMALL, sheet.SOFT_INK)
    assert right - 40 < name[0] < right and top - 20 < name[1] < top, "at its end"


def test_diagonal_stays_visible_under_any_number_of_points():
    line = np.linspace(-1, 1, 20_000)
    image = scattered(line, line, np.arange(20_000) > 0)
    x, y = where(image, 0.5, 0.5)
    assert share(image.getpixel((x + 1, y + 1)), scatter._colours(2)[1]) > 0.5, "points on either side of the line"
    assert is_dark(image, x, y)


def test_both_axes_have_a_line_at_zero():
    image = plot(CORNER)
    for at in (-0.8, -0.3, 0.3, 0.8):
        assert image.getpixel(where(image, at, 0)) == image.getpixel(where(image, 0, at)) == scatter.ZERO


def test_outlier_does_not_set_the_scale():
    calm, loud = (plot(*cloud(200), (score, 0.25, 0)) for score in (-0.95, 5000.0))
    _, _, right, bottom = frame(calm)
    above = (0, 0, calm.width, bottom + 30)
    changed = ImageChops.difference(calm.crop(above), loud.crop(above))
    x, y = where(calm, -0.95, 0.25)
    for box in ((x - 6, y - 6, x + 7, y + 7), (right - 10, y - 6, right, y + 7)):
        assert changed.crop(box).getbbox()
        changed.paste((0, 0, 0), box)
    assert not changed.getbbox(), "only that point, neither the others nor the scale"
    note = "triangles: 1 beyond the scale, magnitudes up to 5000"
    assert shows(loud, (0, loud.height - 60, *loud.size), note, sheet.SMALL, sheet.SOFT_INK)
    assert calm.height == loud.height - line_height(sheet.SMALL)


@pytest.mark.parametrize(
    "right, up", [(right, up) for right in (-1, 0, 1) for up in (-1, 0, 1) if (right, up) != (0, 0)]
)
def test_point_beyond_the_scale_is_a_triangle_that_points_outwards(right, up):
    others = [(0.0, 1.0, 0)] * 60
    at = (right * 70.0 or 0.3, up * 70.0 or -0.4)
    image, without = (plot(*others, point) for point in ((*at, 1), (0.0, 0.0, 1)))
    left, top, last, bottom = frame(image)
    above = (0, 0, image.width, bottom + 30)
    changed = ImageChops.difference(image.crop(above), without.crop(above)).convert("L")
    x, y = where(image, 0, 0)
    changed.paste(0, (x - 9, y - 9, x + 10, y + 10))
    x0, y0, x1, y1 = changed.getbbox()
    assert 6 < x1 - x0 < 14 and 6 < y1 - y0 < 14
    x, y = where(image, *at)
    middle = {-1: left + 5, 0: x, 1: last - 5}[right], {-1: bottom - 5, 0: y, 1: top + 5}[up]
    assert ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2) == pytest.approx(middle, abs=2.5)
    # It narrows outwards.
    rows, columns = np.nonzero(np.asarray(changed) > 20)
    along, across = columns * right - rows * up, columns * up + rows * right
    inner, outer = along < along.mean() - 1, along > along.mean() + 1
    assert np.ptp(across[inner]) > np.ptp(across[outer]) + 2


def test_points_beyond_the_scale_are_counted():
    generator = np.random.default_rng(0)
    scores_N, effects_N = generator.standard_normal((2, 10_000))
    scores_N[:30], effects_N[20:50] = 100.0, -123.4
    image = scattered(scores_N, effects_N, np.arange(10_000) % 48)
    note = "triangles: 50 beyond the scale, magnitudes up to 123"
    assert shows(image, (0, image.height - 60, *image.size), note, sheet.SMALL, sheet.SOFT_INK)


def is_noted(image):
    _, _, _, bottom = frame(image)
    return image.height - bottom > 70


@pytest.mark.parametrize("large", [2, 50_000])
@pytest.mark.parametrize("count, beyond", [(2, False), (50, False), (60, True), (1000, True)])
def test_up_to_50_points_are_all_within_the_scale(count, beyond, large):
    image = plot(*[(0.9, 0.9, 0)] * (count - 1), (0.5, -large, 0))
    assert is_noted(image) == beyond


def test_normal_distribution_is_within_the_scale():
    scores_N = np.random.default_rng(0).standard_normal(2000)
    assert not is_noted(scattered(scores_N, 0.5 * scores_N, np.zeros(2000, int)))


def test_cells_without_effect_do_not_set_the_scale():
    within = [(1.0 - at / 40, 0.5, 0) for at in range(20)]
    assert not is_noted(plot(*within, *[(0.0, 0.0, 1)] * 5000))


def test_no_layer_covers_another():
    scores_N, effects_N = np.random.default_rng(0).uniform((0.2, -0.8), (0.8, -0.2), (1501, 2)).T
    scores_N[-1], effects_N[-1] = 1, -1
    is_first_half_N = np.arange(1501) < 750
    means = []
    for layers_N in (is_first_half_N, ~is_first_half_N):
        image = scattered(scores_N, effects_N, layers_N)
        box = (*where(image, 0.2, -0.2), *where(image, 0.8, -0.8))
        means.append(np.asarray(image.crop(box)).mean(axis=(0, 1)))
    assert means[0] == pytest.approx(means[1], abs=4), "whichever layer comes first"


def test_dense_regions_are_darker():
    image = plot(CORNER, (0.5, -0.5, 0), *[(-0.5, 0.5, 0)] * 40)
    one, many = (image.convert("L").getpixel(where(image, *at)) for at in ((0.5, -0.5), (-0.5, 0.5)))
    assert many + 20 < one < 150


def test_more_points_are_smaller():
    def inked(count):
        image = plot((0.5, -0.7, 0), *[CORNER] * count)
        x, y = where(image, 0.5, -0.7)
        return (np.asarray(image.convert("L").crop((x - 8, y - 8, x + 9, y + 9))) < 250).sum()

    sizes = [inked(count) for count in (1, 100, 10_000)]
    assert 70 > sizes[0] > sizes[1] > sizes[2] > 8


@pytest.mark.parametrize(
    "largest, texts",
    [
        (1.0, TICKS),
        (4.7, ["−4", "−3", "−2", "−1", "0", "1", "2", "3", "4"]),
        (0.018, ["−0.01", "0", "0.01"]),
        (0.0071, ["−0.005", "0", "0.005"]),
        (33.0, ["−30", "−20", "−10", "0", "10", "20", "30"]),
        (12_000.0, ["−10000", "−5000", "0", "5000", "10000"]),
        (5.63e-6, ["−4e−6", "−2e−6", "0", "2e−6", "4e−6"]),
        (1.2e-6, ["−1.0e−6", "−5.0e−7", "0", "5.0e−7", "1.0e−6"]),
        (1.8e-6, ["−1e−6", "0", "1e−6"]),
        (240_000.0, ["−2e5", "−1e5", "0", "1e5", "2e5"]),
    ],
)
def test_ticks_are_round_numbers_within_the_scale(largest, texts):
    image = plot((largest, -0.3 * largest, 0))
    left, top, right, bottom = frame(image)
    x, y = ticks(image)
    assert len(x) == len(texts)
    for column, row, text in zip(x, y, texts, strict=True):
        assert shows(image, (column - 45, bottom, column + 45, bottom + 35), text), text
        assert shows(image, (0, row - 15, left, row + 15), text), text
    value = float(texts[-1].replace("\N{MINUS SIGN}", "-"))
    zero = (left + right) / 2
    point = ImageChops.difference(image, plot((-largest, -0.3 * largest, 0))).crop((zero, top, right, bottom))
    x0, _, x1, _ = point.getbbox()
    assert (x[-1] - zero) / ((x0 + x1 - 1) / 2) == pytest.approx(value / largest, abs=0.01)


@pytest.mark.parametrize("largest", [*np.geomspace(1e-6, 1e6, 61)])
def test_tick_numbers_never_touch(largest):
    image = plot((largest, 0.0, 0))
    left, _, right, bottom = frame(image)
    x, _ = ticks(image)
    assert 3 <= len(x) <= 11
    top = bottom + sheet.GAP + 2
    numbers = image.convert("L").crop((left - 40, top, right + 40, top + line_height(sheet.TEXT) - 4))
    inked = np.flatnonzero((np.asarray(numbers) < 128).any(axis=0))
    assert (np.diff(inked) > 5).sum() + 1 == len(x), "gaps between the characters of a number are smaller"


@pytest.mark.parametrize("value", [0.0, 4.7, -3e-5])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_equal_values_are_one_point_within_the_scale(value, count):
    image = scattered(np.full(count, value), np.full(count, value / 2), np.zeros(count, int))
    left, top, right, bottom = frame(image)
    inner = np.asarray(image.crop((left + 1, top + 1, right, bottom)).convert("L")).copy()
    middle = len(inner) // 2
    inner[middle] = inner[:, middle] = 255
    at = np.arange(len(inner))
    inner[np.abs(at + at[:, None] - 2 * middle) < 12] = 255
    rows, columns = np.nonzero(inner < 250)
    if value == 0:
        assert not len(rows), "hidden by the lines through zero"
    else:
        assert np.ptp(rows) < 12 and np.ptp(columns) < 12
        assert np.sign(columns.mean() - middle) == np.sign(middle - rows.mean()) == np.sign(value)
    assert not is_noted(image)


def test_scale_of_all_zeros_is_1():
    image = plot((0.0, 0.0, 0))
    left, _, right, bottom = frame(image)
    for text in TICKS:
        assert shows(image, (left - 40, bottom, right + 40, bottom + 40), text)
    x, y = where(image, 0, 0)
    assert share(image.getpixel((x + 2, y)), scatter._colours(1)[0]) > 0.8


@pytest.mark.parametrize("title", ["Prag " * 60, "x" * 300, "gradient × activation → 日本 " * 10])
def test_title_of_300_characters_is_not_clipped(title):
    def ink(image):
        return (255 - np.asarray(image.convert("L"), dtype=int)).sum()

    got = ink(plot(CORNER, title=title)) - ink(plot(CORNER, title=""))
    words = [drawable(word) for word in title.split()]
    covered = (255 - sheet.INK[0]) / 255
    wanted = sum(covered * np.asarray(text_mask(word, sheet.TITLE), dtype=int).sum() for word in words)
    assert got == pytest.approx(wanted, rel=0.02)
    assert plot(CORNER, title=title).height > plot(CORNER, title="x").height + 3 * line_height(sheet.TITLE)


def test_title_and_subtitle_are_at_the_top():
    image = plot(CORNER, title="A title", subtitle="and below it")
    _, top, _, _ = frame(image)
    heading = (0, 0, image.width, top)
    title = place(image, heading, "A title", sheet.TITLE)
    subtitle = place(image, heading, "and below it", sheet.SMALL, sheet.SOFT_INK)
    assert title[1] < subtitle[1]
    longer = plot(CORNER, title="A title", subtitle="and below it " * 20)
    assert longer.height > image.height + line_height(sheet.SMALL)


@pytest.mark.parametrize("size", [1e-7, 1.0, 12_345.0])
@pytest.mark.parametrize("count", [1, 100, 20_000])
def test_any_number_of_points_has_a_white_margin_and_a_reasonable_size(count, size):
    scores_N, effects_N = size * np.random.default_rng(0).standard_cauchy((2, count))
    image = scattered(scores_N, effects_N, np.arange(count) % 160, title="The capital of Spain is " * 12)
    assert image.mode == "RGB"
    assert 520 <= image.width <= 700 and 520 <= image.height <= 800
    framed = np.asarray(image).copy()
    framed[12:-12, 12:-12] = 255
    assert (framed == 255).all()


def test_same_points_give_the_same_bytes():
    points = cloud(3000)
    first = plot(*points).tobytes()
    for cached in (text_mask, marks._disc, marks._triangle):
        cached.cache_clear()
    assert plot(*points).tobytes() == first
    values_3N = np.asarray(points, dtype=np.float32).T
    assert (
        scattered(*values_3N[:2], values_3N[2].astype(np.int8)).tobytes()
        == scattered(*values_3N[:2].astype(float), values_3N[2].astype(int)).tobytes()
    )


def test_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"scores_N: shape \(3,\), but layers_N is \(2,\)"):
        scattered(np.ones(3), np.ones(3), [0, 1])
    with pytest.raises(ValueError, match=r"effects_N: shape \(1,\), but layers_N is \(2,\)"):
        scattered(np.ones(2), np.ones(1), [0, 1])
    with pytest.raises(ValueError, match="at least one each"):
        scattered([], [], [])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_numbers_that_are_not_finite(value):
    with pytest.raises(ValueError, match="scores_N: every number must be finite"):
        plot((value, 1.0, 0))
    with pytest.raises(ValueError, match="effects_N: every number must be finite"):
        plot((1.0, value, 0))
