"""Heatmaps: what their pixels show of the scores, and where their labels stand."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import ImageChops
from pixels import place, place_upright, shows

from lit_attr.views import cells, colours, heatmaps, sheet
from lit_attr.views.heatmaps import (
    Panel,
    draw_fact_heatmap,
    draw_fact_heatmaps,
    draw_role_heatmap,
    draw_role_heatmaps,
)
from lit_attr.views.labels import drawable, line_height, text_mask, text_width

SUBJECT = ["first subject", "middle subject", "last subject"]
ROLES = ["position 0", "prefix", *SUBJECT, "first subsequent", "further", "last"]
N_LAYERS, N_TOKENS = 8, 6


def fact(scores_LT, **changes):
    n_layers, n_tokens = scores_LT.shape
    settings = {
        "layers": range(n_layers),
        "tokens": [f" token{at}" for at in range(n_tokens)],
        "subject_span": (n_tokens - 1, n_tokens),
        "title": "The capital of Spain is →  Madrid / Paris",
        "subtitle": "logit difference +4.70 · MLP gradient × activation",
    }
    return draw_fact_heatmap(scores_LT, **(settings | changes))


def role(means_LR, **changes):
    settings = {
        "layers": range(len(means_LR)),
        "roles": ROLES,
        "counts": [387] * len(ROLES),
        "title": "Mean score",
        "subtitle": "387 facts",
    }
    return draw_role_heatmap(means_LR, **(settings | changes))


def anchored(*changes):
    """Scores with these (layer, token, score) set; the scale is 1, set by a cell of the last token."""
    scores_LT = np.zeros((N_LAYERS, N_TOKENS))
    scores_LT[3, -1] = 1.0
    for layer, token, score in changes:
        scores_LT[layer, token] = score
    return scores_LT


def cell_box(layer, token):
    """The box of a cell: the pixels that change with it."""
    return ImageChops.difference(fact(anchored()), fact(anchored((layer, token, 1.0)))).getbbox()


def grid_box(n_layers, n_tokens, **changes):
    """The box of all cells: the pixels that change with any score."""
    low, high = (fact(np.full((n_layers, n_tokens), score), **changes) for score in (0.0, 1.0))
    return ImageChops.difference(low, high).getbbox()


def colour_at(image, box):
    return image.getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2))


def pixels(image, box):
    """The pixels of a box, without grid lines at its edge, as rows of RGB."""
    x0, y0, x1, y1 = box
    return np.asarray(image.crop((x0 + 2, y0 + 2, x1 - 2, y1 - 2))).reshape(-1, 3).astype(int)


def test_zero_is_white_positive_red_negative_blue():
    image = fact(anchored((2, 2, 0.8), (5, 2, -0.8)))
    red, green, blue = colour_at(image, cell_box(2, 2))
    assert red > green + 60 and red > blue + 60
    red, green, blue = colour_at(image, cell_box(5, 2))
    assert blue > green + 40 and blue > red + 60
    assert colour_at(image, cell_box(4, 2)) == (255, 255, 255)


def test_both_signs_darken_monotonically_and_equally():
    linear = np.where(colours.TABLE < 11, colours.TABLE / 3294, ((colours.TABLE / 255 + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16  # CIE L*, 100 is white
    negative, positive = lightness[: colours.HALF_STEPS + 1][::-1], lightness[colours.HALF_STEPS :]
    assert negative[0] == positive[0] == pytest.approx(100)
    for side in (negative, positive):
        assert side[-1] < 35
        assert np.diff(side).min() > -0.8 and np.diff(side).max() < 0.2, "monotonic, up to rounding"
    assert np.abs(negative - positive).max() < 6


def test_layers_run_to_the_right_and_tokens_downwards():
    box, next_layer, next_token = cell_box(2, 1), cell_box(3, 1), cell_box(2, 2)
    assert next_layer[0] == box[2] + 1 and next_layer[1::2] == box[1::2]
    assert next_token[1] == box[3] + 1 and next_token[0::2] == box[0::2]


@pytest.mark.parametrize("layer", [0, 3, N_LAYERS - 1])
@pytest.mark.parametrize("token", [0, 1, N_TOKENS - 1])
def test_single_score_colours_the_cell_of_its_token_and_layer(layer, token):
    only = np.zeros((N_LAYERS, N_TOKENS))
    only[layer, token] = -3.0
    image, grid = fact(only, subject_span=(2, 3)), grid_box(N_LAYERS, N_TOKENS, subject_span=(2, 3))
    deepest = (np.asarray(image.crop(grid)) == colours.TABLE[0]).all(axis=2)
    x, y = np.argwhere(deepest).mean(axis=0)[::-1] + grid[:2]
    assert deepest.sum() > 1000 and deepest.sum() < 36 * 36, "one cell"
    left, below = (0, grid[1], grid[0], grid[3]), (0, grid[3], *image.size)
    label = place(image, left, f"␣token{token}", colour=sheet.SOFT_INK)
    number = place(image, below, str(layer))
    assert label[1] == pytest.approx(y, abs=2)
    assert number[0] == pytest.approx(x, abs=2)


def test_first_token_is_at_the_top_and_layer_0_at_the_left():
    grid = grid_box(N_LAYERS, N_TOKENS)
    first, last = cell_box(0, 0), cell_box(N_LAYERS - 1, N_TOKENS - 1)
    assert first[:2] == grid[:2]
    assert last[2:] == pytest.approx(grid[2:], abs=2)
    assert last[0] > grid[2] - 40 and last[1] > grid[3] - 40, "a cell, not the whole grid"


@pytest.mark.parametrize("subject_span", [(5, 6), (0, 1)])
def test_position_0_does_not_set_the_scale(subject_span):
    calm = fact(anchored((2, 2, 0.5), (1, 0, 1.0)), subject_span=subject_span)
    loud = fact(anchored((2, 2, 0.5), (1, 0, -5000.0)), subject_span=subject_span)
    assert calm.width == loud.width
    above_the_note = (0, 0, calm.width, cell_box(0, N_TOKENS - 1)[3])
    changed = ImageChops.difference(calm.crop(above_the_note), loud.crop(above_the_note)).getbbox()
    assert changed == pytest.approx(cell_box(1, 0), abs=2), "only that cell, neither the others nor the scale"


def test_cell_beyond_the_scale_is_hatched_and_noted():
    image = fact(anchored((1, 0, 1.0), (6, 0, -7.524)))
    clipped, full = pixels(image, cell_box(6, 0)), pixels(image, cell_box(1, 0))
    assert {tuple(colour) for colour in full} == {tuple(colours.TABLE[-1])}
    assert {tuple(colour) for colour in clipped} == {tuple(colours.TABLE[0]), (255, 255, 255)}
    foot = (0, image.height - 60, image.width, image.height)
    note = "hatched: beyond the scale, |score| up to 7.52"
    assert shows(image, foot, note, sheet.SMALL, sheet.SOFT_INK)
    assert fact(anchored((1, 0, 1.0))).height == image.height - line_height(sheet.SMALL)


def test_position_0_sets_the_scale_where_all_other_scores_are_zero():
    only = np.zeros((N_LAYERS, N_TOKENS))
    only[4, 0] = -3.0
    found = pixels(fact(only), cell_box(4, 0))
    assert {tuple(colour) for colour in found} == {tuple(colours.TABLE[0])}
    image = fact(np.full((1, 1), 5.63e-6))
    assert tuple(colours.TABLE[-1]) in {colour for _, colour in image.getcolors(1 << 20)}
    assert shows(image, (0, 0, *image.size), "+5.63e\N{MINUS SIGN}6")


def test_all_zero_scores_are_white():
    image = fact(np.zeros((N_LAYERS, N_TOKENS)))
    for token in range(N_TOKENS):
        assert (pixels(image, cell_box(4, token)) == 255).all()
    assert shows(image, (0, 0, *image.size), "+1.00"), "the scale of all zeros ends at 1"


def test_colour_bar_shows_its_ends_and_its_unit():
    image = fact(4.7 * anchored())
    grid = grid_box(N_LAYERS, N_TOKENS)
    bar = (grid[2], 0, *image.size)
    for text in ("+4.70", "0", "\N{MINUS SIGN}4.70"):
        assert shows(image, bar, text)
    name = place_upright(image, "score (logits)")
    assert name[0] > grid[2] and name[1] == pytest.approx((grid[1] + grid[3]) / 2, abs=2)
    x = grid[2] + cells.BAR_GAP + cells.BAR_WIDTH // 2
    top, foot = image.getpixel((x, grid[1] + 2)), image.getpixel((x, grid[3] - 2))
    assert top[0] > top[2] + 60 and foot[2] > foot[0] + 60, "plus is at the top"


@pytest.mark.parametrize("n_layers, n_tokens", [(1, 1), (2, 1), (1, 3)])
def test_few_cells_are_large_enough_for_the_colour_bar(n_layers, n_tokens):
    image, grid = fact(np.ones((n_layers, n_tokens))), grid_box(n_layers, n_tokens)
    assert grid[2] - grid[0] > 100 and grid[3] - grid[1] > 100
    assert place_upright(image, "score (logits)") and shows(image, (grid[2], 0, *image.size), "+1.00")


@pytest.mark.parametrize("size, text", [(4.7, "4.70"), (0.01234, "0.0123"), (1327.4, "1327"), (12.345, "12.3")])
def test_numbers_have_three_significant_digits(size, text):
    assert sheet.short_number(size) == text


@pytest.mark.parametrize("size, text", [(0.0005, "5.00e\N{MINUS SIGN}4"), (123456.0, "1.23e5")])
def test_tiny_and_huge_numbers_are_in_scientific_notation(size, text):
    assert sheet.short_number(size) == text


@pytest.mark.parametrize("n_tokens", [1, 2, 12, 40, 90, 512])
@pytest.mark.parametrize("n_layers", [1, 8, 48, 96, 160])
def test_every_shape_has_a_white_margin_and_a_reasonable_size(n_layers, n_tokens):
    scores_LT = np.linspace(-1, 1, n_layers * n_tokens).reshape(n_layers, n_tokens)
    tokens = [" a long token 日本", *(f" x{at}" for at in range(1, n_tokens))]
    image = fact(scores_LT, tokens=tokens, title="The capital of Spain is " * 12)
    assert image.mode == "RGB"
    assert 480 <= image.width <= 1200 and image.height <= 2000
    framed = np.asarray(image).copy()
    framed[12:-12, 12:-12] = 255
    assert (framed == 255).all()


@pytest.mark.parametrize("n_layers, n_tokens", [(12, 5), (12, 12), (48, 12), (96, 12)])
def test_thumbnail_400_pixels_wide_is_legible(n_layers, n_tokens):
    image = fact(np.ones((n_layers, n_tokens)))
    x0, y0, x1, y1 = grid_box(n_layers, n_tokens)
    shrunk = 400 / image.width
    assert shrunk * sheet.TEXT > 7
    assert x1 - x0 > 0.6 * image.width, "cells take most of the width"
    assert shrunk * (y1 - y0) / n_tokens > 16 and shrunk * (x1 - x0) / n_layers > 2.5


@pytest.mark.parametrize("n_tokens, labelled", [(2, 2), (12, 12), (40, 40), (69, 69), (70, 35), (300, 60)])
def test_row_labels_never_touch_and_up_to_69_are_all_shown(n_tokens, labelled):
    span = {"subject_span": (0, 1)}
    image, grid = fact(np.ones((4, n_tokens)), **span), grid_box(4, n_tokens, **span)
    ink = np.asarray(image.convert("L").crop((0, grid[1], grid[0] - 3, grid[3] + 20))) < 200
    # Each label has a row without ink above it. The underlined one of the subject is skipped.
    first = line_height(sheet.TEXT) + 3 + (grid[3] - grid[1]) // n_tokens // 2 - 12
    inked = ink[first:].any(axis=1).astype(int)
    assert (np.diff(inked, prepend=0) == 1).sum() == labelled - 1


def test_first_subject_row_is_labelled_where_labels_are_thinned():
    image, grid = (draw(4, 150) for draw in (lambda *n: fact(np.ones(n), subject_span=(13, 15)), grid_box))
    left = (0, 0, grid[0], image.height)
    assert shows(image, left, "␣token13", strong=True)
    assert not shows(image, left, "␣token14", strong=True)


@pytest.mark.parametrize("n_layers, labelled", [(1, 1), (8, 8), (12, 12), (24, 12), (48, 12), (96, 20), (160, 20)])
def test_layer_numbers_are_thinned_until_they_do_not_touch(n_layers, labelled):
    image, grid = fact(np.ones((n_layers, 4))), grid_box(n_layers, 4)
    top = grid[3] + sheet.GAP + 2
    numbers = image.convert("L").crop((0, top, image.width, top + line_height(sheet.TEXT) - 4))
    inked = np.flatnonzero((np.asarray(numbers) < 128).any(axis=0))
    assert (np.diff(inked) > 5).sum() + 1 == labelled, "gaps between the digits of a number are smaller"


def test_layers_have_their_true_numbers():
    image, grid = fact(np.ones((3, 4)), layers=[0, 5, 11]), grid_box(3, 4)
    below = (0, grid[3], *image.size)
    places = [place(image, below, number)[0] for number in ("0", "5", "11")]
    assert places == sorted(places)
    assert not any(shows(image, below, number) for number in ("2", "3"))


def test_token_labels_are_flush_with_the_grid():
    tokens = ["a", " bc", "defghij", " k", "日本", "\n"]
    grid = grid_box(N_LAYERS, N_TOKENS, tokens=tokens, subject_span=(1, 2))
    image = fact(anchored(), tokens=tokens, subject_span=(1, 2))
    for token, label in ((0, "a"), (2, "defghij"), (3, "␣k"), (5, r"\n")):
        x, _ = place(image, (0, 0, grid[0], image.height), label, colour=sheet.SOFT_INK)
        end = x + text_mask(label, sheet.TEXT).width / 2
        assert end == pytest.approx(grid[0] - sheet.GAP, abs=1), token


def test_layer_axis_is_named_below():
    for image in (fact(anchored()), role(np.ones((4, 8)))):
        assert shows(image, (0, image.height - 60, *image.size), "layer")


@pytest.mark.parametrize("span", [(0, 1), (1, 3), (5, 6), (0, 6)])
def test_subject_rows_are_framed_named_and_bold(span):
    image, grid = fact(anchored(), subject_span=span), grid_box(N_LAYERS, N_TOKENS, subject_span=span)
    pitch = cell_box(0, 2)[1] - cell_box(0, 1)[1]
    top = cell_box(0, 0)[1] - 1
    y0, y1 = top + span[0] * pitch, top + span[1] * pitch
    for x in (grid[0] + 9, grid[2] - 9):
        dark = [y for y in range(grid[1] - 9, grid[3] + 3) if image.getpixel((x, y)) == sheet.INK]
        assert len(dark) == 4, "two lines, two pixels each"
        assert dark == pytest.approx([y0, y0 + 1, y1, y1 + 1], abs=2)
    word = place_upright(image, "subject", sheet.SMALL)
    assert grid[2] < word[0] < grid[2] + cells.BAR_GAP
    assert y0 < word[1] < y1
    half = text_width("subject", sheet.SMALL) / 2
    assert grid[1] - 3 <= word[1] - half and word[1] + half <= grid[3] + 3, "within the height of the grid"
    left = (0, 0, grid[0], image.height)
    for token in range(N_TOKENS):
        assert shows(image, left, f"␣token{token}", strong=True) == (token in range(*span))
        assert shows(image, left, f"␣token{token}", colour=sheet.SOFT_INK) != (token in range(*span))


@pytest.mark.parametrize("title", ["Prag " * 60, "x" * 300, "The capital of São Paulo → 日本 " * 10])
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_title_of_300_characters_is_not_clipped(title, n_tokens):
    def ink(image):
        return (255 - np.asarray(image.convert("L"), dtype=int)).sum()

    scores_LT = np.ones((2, n_tokens))
    got = ink(fact(scores_LT, title=title)) - ink(fact(scores_LT, title=""))
    words = [drawable(word) for word in title.split()]
    share = (255 - sheet.INK[0]) / 255
    wanted = sum(share * np.asarray(text_mask(word, sheet.TITLE), dtype=int).sum() for word in words)
    assert got == pytest.approx(wanted, rel=0.02)


def test_roles_keep_their_order_each_above_its_count():
    roles, counts = ["middle", "further", "a last one", "prefix"], [387, 21919, 401, 299]
    image = role(np.ones((5, 4)), roles=roles, counts=counts)
    left = (0, 0, image.width // 2, image.height)
    texts = [text for name, count in zip(roles, counts, strict=True) for text in (name, f"n={count:,}")]
    places = [place(image, left, text, colour=sheet.SOFT_INK) for text in texts]
    ends = [x + text_mask(text, sheet.TEXT).width / 2 for (x, _), text in zip(places, texts, strict=True)]
    assert len(set(ends)) == 1, "flush right"
    heights = [y for _, y in places]
    assert heights == sorted(heights)
    apart = np.diff(heights)
    assert apart[::2].max() + 10 < apart[1::2].min(), "a count is closer to its own role than to the next"


def test_role_that_never_occurs_is_hatched_grey():
    means_LR, counts = np.full((6, 8), 0.7), [387, 387, 387, 0, 387, 387, 201, 21919]
    changed = means_LR.copy()
    changed[:, 3] = np.nan
    image = role(changed, counts=counts)
    box = ImageChops.difference(role(means_LR, counts=counts), image).getbbox()
    empty = {tuple(colour) for colour in pixels(image, box)} - {cells.GRID}
    assert empty == {colours.EMPTY, cells.EMPTY_HATCH}
    assert all(red == green == blue for red, green, blue in empty)
    left = (0, box[1], box[0], box[3])
    for text in ("middle subject", "n=0"):
        assert shows(image, left, text, colour=sheet.SOFT_INK), "the row beside it"


def test_role_map_without_facts_is_empty():
    image = role(np.full((2, 8), np.nan), counts=[0] * 8)
    assert colours.EMPTY in {colour for _, colour in image.getcolors(1 << 20)}


def test_position_0_does_not_set_the_scale_of_a_role_map():
    means_LR = np.zeros((2, 8))
    means_LR[0, 0] = 9.0
    image = role(means_LR)
    assert shows(image, (0, 0, *image.size), "+9.00"), "no other mean is non-zero"
    means_LR[1, 4] = -0.5
    image = role(means_LR)
    assert shows(image, (0, 0, *image.size), "+0.500")
    foot = (0, image.height - 60, *image.size)
    assert shows(image, foot, "hatched: beyond the scale, |score| up to 9.00", sheet.SMALL, sheet.SOFT_INK)
    means_LR[1, 0] = 0.5
    box = ImageChops.difference(image, role(means_LR)).getbbox()
    assert {tuple(colour) for colour in pixels(role(means_LR), box)} == {tuple(colours.TABLE[-1])}, (
        "one cell, in full"
    )


def test_position_0_stands_apart_in_a_role_map():
    def row_box(row):
        means_LR = np.zeros((2, 8))
        means_LR[:, -1] = 1.0
        changed = means_LR.copy()
        changed[:, row] = 0.5
        return ImageChops.difference(role(means_LR), role(changed)).getbbox()

    boxes = [row_box(row) for row in range(4)]
    gaps = [below[1] - above[3] for above, below in pairwise(boxes)]
    assert gaps[1:] == [1, 1]
    assert gaps[0] == heatmaps.APART + 1
    image = role(np.zeros((2, 8)))
    left = (0, 0, boxes[0][0], image.height)
    for name, box in zip(ROLES, boxes, strict=False):
        line = line_height(sheet.TEXT)
        assert place(image, left, name, colour=sheet.SOFT_INK)[1] == pytest.approx(
            (box[1] + box[3]) / 2 - line / 2, abs=3
        ), "beside its row"


def test_marked_cells_have_a_dot():
    means_LR = np.linspace(-1, 1, 32).reshape(4, 8)
    plain = role(means_LR)
    assert not ImageChops.difference(plain, role(means_LR, marked_LR=np.zeros((4, 8), dtype=bool))).getbbox()
    for layer, row in ((0, 0), (3, 1), (2, 7)):
        changed = means_LR.copy()
        changed[layer, row] = 0.03
        x0, y0, x1, y1 = ImageChops.difference(plain, role(changed)).getbbox()
        marked_LR = np.zeros((4, 8), dtype=bool)
        marked_LR[layer, row] = True
        marked = role(means_LR, marked_LR=marked_LR)
        dot = ImageChops.difference(plain, marked).getbbox()
        assert (x0 + x1) / 2 < dot[0] and dot[2] <= x1 + 1 and (y0 + y1) / 2 < dot[1] and dot[3] <= y1 + 1
        assert 3 <= dot[2] - dot[0] <= cells.DOT + 3
        assert colour_at(marked, dot) == sheet.INK


def test_the_quantity_is_named_beside_the_scale():
    means_LR = np.zeros((2, 8))
    means_LR[0, :2] = 9.0, 0.5
    foot = "hatched: beyond the scale, |effect| up to 9.00"
    for signed, name, ends in ((True, "effect (logits)", ["+0.500", "−0.500"]), (False, "|effect| (logits)", [])):
        image = role(means_LR, quantity=cells.Quantity("effect", signed))
        assert place_upright(image, name, sheet.TEXT)
        assert shows(image, (0, image.height - 60, *image.size), foot, sheet.SMALL, sheet.SOFT_INK)
        for number in ("+0.500", "−0.500"):
            assert shows(image, (image.width // 2, 0, *image.size), number) == (number in ends)


def test_the_scale_of_magnitudes_begins_at_0():
    image = role(np.full((2, 8), 0.5), quantity=cells.Quantity("effect", is_signed=False))
    right = (image.width - 150, 0, *image.size)
    (_, top), (_, bottom) = place(image, right, "0.500"), place(image, right, "0")
    assert bottom - top > 100
    seen = {colour for _, colour in image.crop(right).getcolors(1 << 20)}
    assert tuple(colours.TABLE[-1].tolist()) in seen and tuple(colours.TABLE[0].tolist()) not in seen


def test_same_scores_give_the_same_bytes():
    first = fact(anchored((2, 0, 4.0))).tobytes()
    text_mask.cache_clear()
    assert fact(anchored((2, 0, 4.0))).tobytes() == first
    assert fact(anchored((2, 0, 4.0)).astype(np.float32)).tobytes() == first


@pytest.mark.parametrize("span", [(2, 2), (3, 2), (-1, 2), (5, 7)])
def test_refuses_a_span_outside_the_tokens(span):
    with pytest.raises(ValueError, match="subject_span"):
        fact(anchored(), subject_span=span)


@pytest.mark.parametrize("scores_LT", [np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_refuses_scores_that_are_not_finite(scores_LT):
    with pytest.raises(ValueError, match="finite"):
        fact(scores_LT)


def test_refuses_shapes_that_do_not_match():
    with pytest.raises(ValueError, match=r"scores_LT: shape \(8, 6\), but layers by tokens is \(7, 6\)"):
        fact(anchored(), layers=range(7))
    with pytest.raises(ValueError, match="at least one each"):
        fact(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="roles"):
        role(np.zeros((4, 6)), counts=[1] * 6)
    with pytest.raises(ValueError, match="counts"):
        role(np.zeros((4, 8)), counts=[1] * 6)
    with pytest.raises(ValueError, match="finite"):
        role(np.full((4, 8), np.inf))


def test_subject_labels_are_underlined_below_all_letters():
    label, plain = (np.asarray(heatmaps._label("␣gjpqy", strong)) for strong in (True, False))
    ruled = (label[:, 2:-2] == 255).all(axis=1)
    assert ruled.any()
    assert not plain[ruled.argmax() :].any()


def facts(*scores, names=("MLP", "attention"), **changes):
    n_layers, n_tokens = scores[0].shape
    settings = {
        "layers": range(n_layers),
        "tokens": [f" token{at}" for at in range(n_tokens)],
        "subject_span": (n_tokens - 1, n_tokens),
        "title": "The capital of Spain is →  Madrid / Paris",
        "subtitle": "logit difference +4.70",
    }
    panels = [Panel(name, each) for name, each in zip(names, scores, strict=True)]
    return draw_fact_heatmaps(panels, **(settings | changes))


def panel_box(which, layer, token, n_layers=N_LAYERS):
    """The box of a cell in one of two maps: the pixels that change with it."""
    base = [anchored()[:n_layers], anchored()[:n_layers]]
    other = [each.copy() for each in base]
    other[which][layer, token] = -1.0
    return ImageChops.difference(facts(*base), facts(*other)).getbbox()


def test_maps_side_by_side_have_one_scale():
    left, right = anchored((2, 2, 0.5)), 4 * anchored((5, 2, 0.125))
    image = facts(left, right)
    # The second map's 4 sets the scale: half a logit has the same colour in both, and the first's 1 is lighter.
    assert colour_at(image, panel_box(0, 2, 2)) == colour_at(image, panel_box(1, 5, 2))
    assert colour_at(image, panel_box(1, 3, N_TOKENS - 1)) == tuple(colours.TABLE[-1])
    assert colour_at(image, panel_box(0, 3, N_TOKENS - 1)) == tuple(
        colours.TABLE[colours.HALF_STEPS + round(colours.HALF_STEPS / 4)]
    )
    assert shows(image, (0, 0, *image.size), "+4.00")


def test_maps_side_by_side_have_their_names_and_numbers():
    image = facts(anchored(), anchored())
    whole = (0, 0, *image.size)
    for which, name in enumerate(("MLP", "attention")):
        first, last = panel_box(which, 0, 0), panel_box(which, N_LAYERS - 1, 0)
        x, y = place(image, whole, name)
        assert x == pytest.approx((first[0] + last[2]) / 2, abs=3)
        assert y < first[1]
        below = (first[0] - 5, panel_box(which, 0, N_TOKENS - 1)[3], last[2] + 5, image.height)
        for layer in (0, N_LAYERS - 1):
            assert shows(image, below, str(layer))
    assert panel_box(0, N_LAYERS - 1, 0)[2] < panel_box(1, 0, 0)[0]
    assert panel_box(0, 0, 1)[1::2] == panel_box(1, 0, 1)[1::2]


def test_a_single_map_is_that_of_a_picture_of_its_own():
    scores = anchored((2, 2, 0.5))
    panel = facts(scores, names=("",), subtitle="logit difference +4.70 · MLP gradient × activation")
    assert ImageChops.difference(panel, fact(scores)).getbbox() is None


def test_every_map_is_checked():
    with pytest.raises(ValueError, match="scores_LT: shape"):
        facts(anchored(), anchored()[1:])
    with pytest.raises(ValueError, match="finite"):
        draw_role_heatmaps(
            [Panel("a", np.zeros((2, 8))), Panel("b", np.full((2, 8), np.inf))],
            layers=[0, 1],
            roles=ROLES,
            counts=[1] * 8,
            title="",
            subtitle="",
        )


@pytest.mark.parametrize("n_layers", [1, 30, 96])
def test_long_names_stay_above_their_maps(n_layers):
    name = "transformer.h.{layer}.attention.output"
    image = facts(*[np.ones((n_layers, N_TOKENS))] * 3, names=[name] * 3)
    # Nothing is drawn at the edges.
    assert set(np.asarray(image)[:, :4].ravel()) == set(np.asarray(image)[:, -4:].ravel()) == {255}
    assert image.width < 1600
