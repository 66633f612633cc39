"""Labels: which characters are drawn, which are escaped, and how text fits into its room."""

import numpy as np
import pytest
from PIL import ImageFont, features

from lit_attr.views import labels
from lit_attr.views.labels import drawable, line_height, text_mask, text_width, token_label, wrap


def clear_caches():
    labels._source.cache_clear()
    text_mask.cache_clear()


@pytest.fixture(autouse=True)
def _no_system_fonts(monkeypatch):
    """Removes system fonts, so that results are the same on every machine."""
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ())
    clear_caches()
    yield
    clear_caches()


def ink(text, **kwargs):
    return np.asarray(text_mask(text, 32, **kwargs)).astype(int)


@pytest.mark.parametrize(
    "token, label",
    [
        (" capital", "␣capital"),
        ("  a b ", "␣␣a␣b␣"),
        ("\n\t", r"\n\t"),
        ("\\n", r"\\n"),
        ("日本", r"\u65e5\u672c"),
        ("\U0001f389", r"\U0001f389"),
        ("\x00", r"\x00"),
        ("\u200b", r"\u200b"),
        ("\ud83d", r"\ud83d"),
        ("\ufffd", r"\ufffd"),
        ("日a本", r"\u65e5a\u672c"),
        ("\u00a0", r"\xa0"),
        (r"\frac", r"\\frac"),
        (" Жуков", "␣Жуков"),
        ("Ελλάς", "Ελλάς"),
        ("øłßđŞ", "øłßđŞ"),
        (" Ẳ", "␣Ẳ"),
        ("e\u0301", "é"),
        ("\u0301", r"\u0301"),
        (" São", "␣São"),
        ("Çą", "Çą"),
        ("→×−–—…", "→×−–—…"),
        ("", '""'),
    ],
)
def test_label_escapes_undrawable_characters(token, label):
    assert token_label(token) == label


def test_long_label_is_elided_in_the_middle():
    label = token_label(" antidisestablishmentarianism")
    head, tail = label.split("…")
    assert len(label) == labels.MAX_LABEL_CHARS
    assert "␣antidisestablishmentarianism".startswith(head)
    assert "antidisestablishmentarianism".endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    assert token_label("a" * labels.MAX_LABEL_CHARS) == "a" * labels.MAX_LABEL_CHARS


def test_eliding_never_splits_an_escape():
    assert token_label("日本語の本") == r"\u65e5…\u672c"
    assert token_label("\U0001f389" * 3) == r"\U0001f389…"


@pytest.mark.parametrize("strong", [False, True])
def test_drawable_characters_have_a_glyph(strong):
    box = ink("\U0010fffe", strong=strong)
    shown = [chr(code) for code in range(0x21, 0x2FFF) if drawable(chr(code)) == chr(code)]
    assert len(shown) > 3000
    for char in shown:
        found = ink(char, strong=strong)
        assert found.any() and not np.array_equal(found, box), f"U+{ord(char):04x}"
    unprintable = [chr(code) for code in range(0x10000) if not chr(code).isprintable() and code != 0x20]
    assert all(drawable(char).startswith("\\") for char in unprintable)


def test_system_font_draws_what_dejavu_lacks(monkeypatch):
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ("no such font.ttf", "a font with one more character.ttf"))
    truetype, missing = ImageFont.truetype, "\U0010fffe"

    class OneMore(ImageFont.FreeTypeFont):
        def getmask(self, text, *args, **kwargs):
            return super().getmask("x" if text == "日" else missing, *args, **kwargs)

    def load(name, size, layout_engine):
        if name == "no such font.ttf":
            raise OSError
        if name in labels.SYSTEM_FONTS:
            return OneMore(labels.REGULAR, size, layout_engine=layout_engine)
        return truetype(name, size, layout_engine=layout_engine)

    monkeypatch.setattr(labels.ImageFont, "truetype", load)
    assert drawable("Ж日本") == r"Ж日\u672c"
    assert [(run, font.path, type(font)) for run, font in labels._runs("Ж日 Ж", 16, strong=True)] == [
        ("Ж", labels.BOLD, ImageFont.FreeTypeFont),
        ("日", labels.REGULAR, OneMore),
        (" Ж", labels.BOLD, ImageFont.FreeTypeFont),
    ]


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow draws right-to-left text only with Raqm")
def test_right_to_left_words_keep_title_order_and_leading_space():
    assert drawable("שלום مدريد") == "שלום مدريد"
    parts, title = [ink(text).sum() for text in ("בב", "→", "ש")], ink("בב → ש")
    glyphs = [part.sum() for part in np.split(title, np.flatnonzero(~title.any(axis=0)), axis=1) if part.any()]
    assert [sum(glyphs[:2]), *glyphs[2:]] == pytest.approx(parts, rel=0.05)
    below = ink("␣שלום")[37:]
    assert below.any() and np.argwhere(below)[:, 1].min() > 0.7 * below.shape[1]
    assert np.argwhere(ink("␣x")[37:])[:, 1].max() < 0.7 * ink("␣x").shape[1]


def test_right_to_left_letters_and_marks_are_escaped_without_raqm(monkeypatch):
    monkeypatch.setattr(labels.features, "check", lambda _: False)
    clear_caches()
    assert drawable("שЖ") == r"\u05e9Ж"
    assert drawable("о́") == r"о\u0301"


@pytest.mark.skipif(not features.check("raqm"), reason="marks are placed by Raqm")
def test_combining_mark_stays_on_its_letter_or_is_escaped():
    assert drawable("го́род") == "го́род"
    assert token_label(" \u0301") == r"␣\u0301"
    assert drawable("日\u0301") == r"\u65e5\u0301", "a mark without a letter"
    plain, marked = ink("о"), ink("о́")
    changed = np.argwhere(abs(plain - marked[:, : plain.shape[1]]) > 128)
    assert plain.shape == marked.shape
    assert len(changed) and changed[:, 0].max() < np.argwhere(plain)[:, 0].min() + 2


def test_strong_text_is_bold():
    plain, strong = ink("Spain"), ink("Spain", strong=True)
    assert strong.shape == (line_height(32), text_width("Spain", 32, strong=True) + 2)
    assert strong.sum() > 1.3 * plain.sum()
    assert {font.path for _, font in labels._runs("Spain é →", 16, strong=True)} == {labels.BOLD}


def test_capitals_are_centred_and_accents_stay_within_the_line():
    rows = np.argwhere(ink("H").any(axis=1))
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(line_height(32) / 2, abs=1)
    for char in "ẢÅgjçẴ":
        assert not ink(char)[[0, -1]].any()


@pytest.mark.parametrize("text", ["The capital of Spain is →  Madrid", "é→×—−", "W", "", " "])
def test_text_is_not_clipped_at_its_ends(text):
    mask = ink(text)
    assert mask.shape == (line_height(32), text_width(text, 32) + 2)
    padded = ink(f" {text} ")
    assert padded.sum() == pytest.approx(mask.sum(), rel=0.01)


def test_wrapping_keeps_all_characters_within_the_width():
    text = "The capital of Spain is →  Madrid / Paris " + "x" * 80
    lines = wrap(text, 20, 240)
    assert all(text_width(line, 20) <= 240 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "The capital of Spain is"
    assert text_width(lines[0] + " →", 20) > 240
    assert wrap("is →  Madrid", 20, 500) == ["is →  Madrid"]
    assert wrap("", 20, 200) == [""]
