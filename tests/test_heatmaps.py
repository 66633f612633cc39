import numpy as np
import pytest
from PIL import Image, ImageChops

from lit_attr import heatmaps
from lit_attr.heatmaps import draw_fact_heatmap, draw_role_heatmap
from lit_attr.labels import line_height, text_mask, text_width

ROLES = ["prefix", "first subject", "middle subject", "last subject", "first subsequent", "further", "last"]
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


def anchored(*cells):
    """Scores whose scale is 1, set by a cell in the last column, with these cells (layer, token, score) set."""
    scores_LT = np.zeros((N_LAYERS, N_TOKENS))
    scores_LT[3, -1] = 1.0
    for layer, token, score in cells:
        scores_LT[layer, token] = score
    return scores_LT


def cell_box(layer, token):
    """Where the cell is: the pixels that change with it."""
    return ImageChops.difference(fact(anchored()), fact(anchored((layer, token, 1.0)))).getbbox()


def colour_at(image, box):
    return image.getpixel(((box[0] + box[2]) // 2, (box[1] + box[3]) // 2))


def pixels(image, box):
    """Pixels of a box without the grid's lines at its edge, as rows of RGB."""
    x0, y0, x1, y1 = box
    return np.asarray(image.crop((x0 + 2, y0 + 2, x1 - 2, y1 - 2))).reshape(-1, 3).astype(int)


def place(image, box, text, size=heatmaps.TEXT, colour=heatmaps.INK, strong=False):
    """Where the text stands, pixel by pixel, on white in the box: the middle of its first find, or None."""
    mask = text_mask(text, size, strong)
    wanted = Image.new("RGB", mask.size, "white")
    wanted.paste(colour, mask=mask)
    wanted_hw, area_hw = (np.asarray(part.convert("L")) for part in (wanted, image.crop(box)))
    windows = np.lib.stride_tricks.sliding_window_view(area_hw, wanted_hw.shape)
    finds = np.argwhere((windows == wanted_hw).all(axis=(2, 3)))
    return (box[0] + finds[0][1] + mask.width / 2, box[1] + finds[0][0] + mask.height / 2) if len(finds) else None


def shows(*args, **kwargs):
    return place(*args, **kwargs) is not None


def test_zero_is_white_and_the_signs_are_red_and_blue():
    image = fact(anchored((2, 2, 0.8), (5, 2, -0.8)))
    red, green, blue = colour_at(image, cell_box(2, 2))
    assert red > green + 60 and red > blue + 60
    red, green, blue = colour_at(image, cell_box(5, 2))
    assert blue > green + 40 and blue > red + 60
    assert colour_at(image, cell_box(4, 2)) == (255, 255, 255)


def test_both_signs_darken_alike_and_without_a_break():
    linear = np.where(heatmaps.TABLE < 11, heatmaps.TABLE / 3294, ((heatmaps.TABLE / 255 + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16  # CIE L*, 100 is white
    negative, positive = lightness[: heatmaps.HALF_STEPS + 1][::-1], lightness[heatmaps.HALF_STEPS :]
    assert negative[0] == positive[0] == pytest.approx(100)
    for side in (negative, positive):
        assert side[-1] < 35
        assert np.diff(side).min() > -0.8 and np.diff(side).max() < 0.2, "rounding apart, ever darker"
    assert np.abs(negative - positive).max() < 6


def test_layer_0_is_at_the_bottom_and_the_first_token_at_the_left():
    box, right_of_it, above_it = cell_box(0, 1), cell_box(0, 2), cell_box(1, 1)
    assert right_of_it[0] == box[0] + (box[2] - box[0]) + 1 and right_of_it[1] == box[1]
    assert above_it[3] == box[1] - 1 and above_it[0] == box[0]
    assert cell_box(N_LAYERS - 1, 1)[1] < cell_box(3, 1)[1] < box[1]


@pytest.mark.parametrize("subject_span", [(5, 6), (0, 1)])
def test_position_0_does_not_set_the_scale(subject_span):
    calm = fact(anchored((2, 2, 0.5), (1, 0, 1.0)), subject_span=subject_span)
    loud = fact(anchored((2, 2, 0.5), (1, 0, -5000.0)), subject_span=subject_span)
    assert calm.width == loud.width
    rest = (cell_box(0, 1)[0], 0, calm.width, cell_box(0, 1)[3])
    assert calm.crop(rest).tobytes() == loud.crop(rest).tobytes()


def test_a_cell_beyond_the_scale_is_hatched_and_the_excess_noted():
    image = fact(anchored((1, 0, 1.0), (6, 0, -7.524)))
    clipped, full = pixels(image, cell_box(6, 0)), pixels(image, cell_box(1, 0))
    assert {tuple(colour) for colour in full} == {tuple(heatmaps.TABLE[-1])}
    assert {tuple(colour) for colour in clipped} == {tuple(heatmaps.TABLE[0]), (255, 255, 255)}
    foot = (0, image.height - 60, image.width, image.height)
    note = "hatched: beyond the scale, |score| up to 7.52"
    assert shows(image, foot, note, heatmaps.SMALL, heatmaps.SOFT_INK)
    assert fact(anchored((1, 0, 1.0))).height == image.height - line_height(heatmaps.SMALL)


def test_where_only_position_0_scores_it_sets_the_scale():
    only = np.zeros((N_LAYERS, N_TOKENS))
    only[4, 0] = -3.0
    found = pixels(fact(only), cell_box(4, 0))
    assert {tuple(colour) for colour in found} == {tuple(heatmaps.TABLE[0])}
    image = fact(np.full((1, 1), 5.63e-6))
    assert tuple(heatmaps.TABLE[-1]) in {colour for _, colour in image.getcolors(1 << 20)}
    assert shows(image, (0, 0, *image.size), "+5.63e\N{MINUS SIGN}6")


def test_all_zero_is_all_white():
    image = fact(np.zeros((N_LAYERS, N_TOKENS)))
    for token in range(N_TOKENS):
        assert (pixels(image, cell_box(4, token)) == 255).all()
    assert shows(image, (0, 0, *image.size), "+1.00"), "a scale needs some end"


def test_the_colour_bar_says_its_ends_and_its_unit():
    image = fact(4.7 * anchored())
    bar = (cell_box(0, N_TOKENS - 1)[2], 0, *image.size)
    for text in ("+4.70", "0", "\N{MINUS SIGN}4.70"):
        assert shows(image, bar, text)
    assert shows(image.rotate(-90, expand=True), (0, 0, image.height, image.width), "score (logits)")
    axis = image.getpixel((bar[0] + 26 + heatmaps.BAR_WIDTH // 2, cell_box(7, 5)[1] + 1))
    assert axis[0] > axis[2] + 60, "plus is at the top"


@pytest.mark.parametrize("size, text", [(4.7, "4.70"), (0.01234, "0.0123"), (1327.4, "1327"), (12.345, "12.3")])
def test_numbers_have_three_digits(size, text):
    assert heatmaps._number(size) == text


@pytest.mark.parametrize("size, text", [(0.0005, "5.00e\N{MINUS SIGN}4"), (123456.0, "1.23e5")])
def test_tiny_and_huge_numbers_are_scientific(size, text):
    assert heatmaps._number(size) == text


@pytest.mark.parametrize("n_tokens", [1, 2, 12, 40, 90, 512])
@pytest.mark.parametrize("n_layers", [1, 8, 48, 96, 160])
def test_every_shape_fits_the_page_with_a_white_margin(n_layers, n_tokens):
    scores_LT = np.linspace(-1, 1, n_layers * n_tokens).reshape(n_layers, n_tokens)
    tokens = [" a long token 日本", *(f" x{at}" for at in range(1, n_tokens))]
    image = fact(scores_LT, tokens=tokens, title="The capital of Spain is " * 12)
    assert image.mode == "RGB"
    assert 480 <= image.width <= 1600 and image.height <= 1400
    framed = np.asarray(image).copy()
    framed[12:-12, 12:-12] = 255
    assert (framed == 255).all()


@pytest.mark.parametrize("n_columns, angle", [(5, 0), (10, 45), (14, 45), (30, 90), (64, 90), (150, 90)])
def test_column_labels_never_touch(n_columns, angle):
    label = text_mask("HHHHHHH", heatmaps.TEXT)
    cell_w, chosen = heatmaps._column_layout(n_columns, label.width, label.height)
    assert chosen == angle
    alone, _ = heatmaps._column_axis([label], cell_w, angle, (0, 0))
    together, overhang = heatmaps._column_axis([label] * n_columns, cell_w, angle, (0, 0))
    ink_alone, ink_together = (
        (255 - np.asarray(part.convert("L"), dtype=int)).sum() for part in (alone, together)
    )
    drawn = -(-n_columns // heatmaps._step(cell_w, 0.85 * label.height)) if angle else n_columns
    assert ink_together == pytest.approx(drawn * ink_alone, rel=1e-3), "overlapping labels hide ink"
    assert drawn == n_columns or n_columns > 70
    assert together.width <= overhang + n_columns * cell_w + 8


@pytest.mark.parametrize("n_layers, cell_h, labelled", [(8, 36, 8), (24, 26, 12), (48, 13, 12), (96, 8, 20)])
def test_layer_numbers_are_thinned_until_they_stand_apart(n_layers, cell_h, labelled):
    axis = np.asarray(heatmaps._layer_axis(range(n_layers), cell_h).convert("L"))
    numbers = axis[:, -heatmaps.GAP - text_width("88", heatmaps.TEXT) : -heatmaps.GAP] < 128
    inked = np.concatenate([[False], numbers.any(axis=1)]).astype(int)
    assert (np.diff(inked) == 1).sum() == labelled


def test_layers_are_called_by_their_true_numbers():
    image = fact(np.ones((3, 4)), layers=[0, 5, 11])
    left = (0, 0, 90, image.height)
    assert all(shows(image, left, number) for number in ("0", "5", "11"))
    assert not any(shows(image, left, number) for number in ("2", "3"))


def test_every_label_stands_at_its_row_or_column():
    image = fact(anchored())
    for layer, token in ((0, 0), (3, 1), (7, 4)):
        x0, y0, x1, y1 = cell_box(layer, token)
        label = place(image, (0, y1, *image.size), f"␣token{token}", colour=heatmaps.SOFT_INK)
        number = place(image, (0, y0 - 10, x1, y1 + 10), str(layer))
        assert label[0] == pytest.approx((x0 + x1) / 2, abs=2)
        assert number[1] == pytest.approx((y0 + y1) / 2, abs=2)


@pytest.mark.parametrize("angle, end", [(45, np.max), (90, np.mean)])
def test_a_turned_label_ends_under_its_column(angle, end):
    axis, overhang = heatmaps._column_axis([text_mask("HHHHHHH", heatmaps.TEXT)], 60, angle, (0, 0))
    ink = np.argwhere(np.asarray(axis.convert("L")) < 200)
    assert end(ink[:, 1]) == pytest.approx(overhang + 30, abs=5)
    assert (overhang > 0) == (angle == 45)


def test_axes_have_names():
    image, roles = fact(anchored()), role(np.ones((4, 7)))
    assert shows(image, (0, image.height - 60, *image.size), "token")
    assert shows(roles, (0, roles.height - 60, *roles.size), "token role")
    turned = image.rotate(-90, expand=True)
    assert shows(turned, (0, 0, *turned.size), "layer")


def test_the_subject_is_framed_and_its_labels_are_strong():
    image = fact(anchored(), subject_span=(1, 3))
    first, last = cell_box(4, 1), cell_box(4, 2)
    y = first[1] + 5
    dark = {x for x in range(first[0] - 80, last[2] + 80) if image.getpixel((x, y)) == heatmaps.INK}
    assert len(dark) == 4, "two lines, two pixels each"
    assert abs(min(dark) - first[0]) <= 2 and abs(max(dark) - last[2]) <= 2
    axis = (0, cell_box(0, 1)[3], *image.size)
    assert shows(image, axis, "␣token1", strong=True) and shows(image, axis, "␣token2", strong=True)
    assert not shows(image, axis, "␣token0", strong=True)
    assert shows(image, axis, "␣token0", colour=heatmaps.SOFT_INK)
    assert shows(image, (0, 0, image.width, first[1]), "subject", heatmaps.SMALL)


@pytest.mark.parametrize("title", ["Prag " * 60, "x" * 300, "The capital of São Paulo → 日本 " * 10])
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_a_title_of_300_characters_is_there_to_its_end(title, n_tokens):
    def ink(image):
        return (255 - np.asarray(image.convert("L"), dtype=int)).sum()

    scores_LT = np.ones((2, n_tokens))
    got = ink(fact(scores_LT, title=title)) - ink(fact(scores_LT, title=""))
    words = [heatmaps.drawable(word) for word in title.split()]
    share = (255 - heatmaps.INK[0]) / 255
    wanted = sum(share * np.asarray(text_mask(word, heatmaps.TITLE), dtype=int).sum() for word in words)
    assert got == pytest.approx(wanted, rel=0.02)


def test_a_role_that_never_occurs_is_grey_and_hatched():
    means_LR = np.full((6, 7), 0.7)
    changed = means_LR.copy()
    changed[:, 2] = np.nan
    image = role(changed, counts=[387, 387, 0, 387, 387, 201, 21919])
    box = ImageChops.difference(role(means_LR), image).crop((0, 0, image.width, 300)).getbbox()
    empty = {tuple(colour) for colour in pixels(image, box)} - {heatmaps.GRID}
    assert empty == {heatmaps.EMPTY, heatmaps.EMPTY_HATCH}
    assert all(red == green == blue for red, green, blue in empty)
    axis = (0, image.height - 150, *image.size)
    for text in ("n=0", "n=387", "n=21,919", "middle", "subsequent"):
        assert shows(image, axis, text, colour=heatmaps.SOFT_INK)


def test_a_role_map_without_any_fact_is_all_empty():
    image = role(np.full((2, 7), np.nan), counts=[0] * 7)
    assert heatmaps.EMPTY in {colour for _, colour in image.getcolors(1 << 20)}


def test_the_first_role_sets_the_scale_as_any_other():
    means_LR = np.zeros((2, 7))
    means_LR[0, 0] = 9.0
    image = role(means_LR)
    assert shows(image, (0, 0, *image.size), "+9.00")


def test_the_same_numbers_give_the_same_bytes():
    first = fact(anchored((2, 0, 4.0))).tobytes()
    text_mask.cache_clear()
    assert fact(anchored((2, 0, 4.0))).tobytes() == first
    assert fact(anchored((2, 0, 4.0)).astype(np.float32)).tobytes() == first


@pytest.mark.parametrize("span", [(2, 2), (3, 2), (-1, 2), (5, 7)])
def test_a_span_that_is_no_stretch_of_the_tokens_is_refused(span):
    with pytest.raises(ValueError, match="subject_span"):
        fact(anchored(), subject_span=span)


@pytest.mark.parametrize("scores_LT", [np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_scores_must_be_finite(scores_LT):
    with pytest.raises(ValueError, match="finite"):
        fact(scores_LT)


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"scores_LT: shape \(8, 6\), but layers by tokens is \(7, 6\)"):
        fact(anchored(), layers=range(7))
    with pytest.raises(ValueError, match="at least one each"):
        fact(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="roles"):
        role(np.zeros((4, 6)), counts=[1] * 6)
    with pytest.raises(ValueError, match="counts"):
        role(np.zeros((4, 7)), counts=[1] * 6)
    with pytest.raises(ValueError, match="finite"):
        role(np.full((4, 7), np.inf))


def test_the_subjects_labels_are_underlined_below_all_letters():
    label, plain = (np.asarray(heatmaps._label(["␣gjpqy"], strong)) for strong in (True, False))
    ruled = (label[:, 2:-2] == 255).all(axis=1)
    assert ruled.any()
    assert not plain[ruled.argmax() :].any()
