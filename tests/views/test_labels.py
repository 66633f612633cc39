import numpy as np
import pytest
from PIL import ImageFont, features

from lit_attr import labels
from lit_attr.views.labels import drawable, line_height, text_mask, text_width, token_label, wrap


def forget():
    labels._source.cache_clear()
    text_mask.cache_clear()


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch):
    """No system fonts, so that the same holds on every machine."""
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ())
    forget()
    yield
    forget()


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
def test_a_label_shows_what_it_can_and_escapes_the_rest(token, label):
    assert token_label(token) == label


def test_a_long_label_loses_its_middle():
    label = token_label(" antidisestablishmentarianism")
    head, tail = label.split("…")
    assert len(label) == labels.MAX_LABEL_CHARS
    assert "␣antidisestablishmentarianism".startswith(head)
    assert "antidisestablishmentarianism".endswith(tail)
    assert abs(len(head) - len(tail)) <= 1
    assert token_label("a" * labels.MAX_LABEL_CHARS) == "a" * labels.MAX_LABEL_CHARS


def test_eliding_never_cuts_an_escape_in_half():
    assert token_label("日本語の本") == r"\u65e5…\u672c"
    assert token_label("\U0001f389" * 3) == r"\U0001f389…"


@pytest.mark.parametrize("strong", [False, True])
def test_no_drawable_character_is_an_empty_box_or_nothing(strong):
    box = ink("\U0010fffe", strong=strong)
    shown = [chr(code) for code in range(0x21, 0x2FFF) if drawable(chr(code)) == chr(code)]
    assert len(shown) > 3000
    for char in shown:
        found = ink(char, strong=strong)
        assert found.any() and not np.array_equal(found, box), f"U+{ord(char):04x}"
    unprintable = [chr(code) for code in range(0x10000) if not chr(code).isprintable() and code != 0x20]
    assert all(drawable(char).startswith("\\") for char in unprintable)


def test_a_system_font_is_asked_for_what_dejavu_lacks(monkeypatch):
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
def test_right_to_left_words_keep_the_order_of_the_title_and_the_side_of_the_space():
    assert drawable("שלום مدريد") == "שלום مدريد"
    parts, title = [ink(text).sum() for text in ("בב", "→", "ש")], ink("בב → ש")
    glyphs = [part.sum() for part in np.split(title, np.flatnonzero(~title.any(axis=0)), axis=1) if part.any()]
    assert [sum(glyphs[:2]), *glyphs[2:]] == pytest.approx(parts, rel=0.05)
    below = ink("␣שלום")[37:]
    assert below.any() and np.argwhere(below)[:, 1].min() > 0.7 * below.shape[1]
    assert np.argwhere(ink("␣x")[37:])[:, 1].max() < 0.7 * ink("␣x").shape[1]


def test_what_would_be_drawn_backwards_or_astray_is_escaped(monkeypatch):
    monkeypatch.setattr(labels.features, "check", lambda _: False)
    forget()
    assert drawable("שЖ") == r"\u05e9Ж"
    assert drawable("о́") == r"о\u0301"


@pytest.mark.skipif(not features.check("raqm"), reason="marks are placed by Raqm")
def test_a_mark_stands_on_its_letter_and_is_escaped_without_one():
    assert drawable("го́род") == "го́род"
    assert token_label(" \u0301") == r"␣\u0301"
    assert drawable("日\u0301") == r"\u65e5\u0301", "no letter, no mark"
    plain, marked = ink("о"), ink("о́")
    changed = np.argwhere(abs(plain - marked[:, : plain.shape[1]]) > 128)
    assert plain.shape == marked.shape
    assert len(changed) and changed[:, 0].max() < np.argwhere(plain)[:, 0].min() + 2


def test_strong_text_is_the_bold_face():
    plain, strong = ink("Spain"), ink("Spain", strong=True)
    assert strong.shape == (line_height(32), text_width("Spain", 32, strong=True) + 2)
    assert strong.sum() > 1.3 * plain.sum()
    assert {font.path for _, font in labels._runs("Spain é →", 16, strong=True)} == {labels.BOLD}


def test_capitals_stand_in_the_middle_and_their_accents_within_the_line():
    rows = np.argwhere(ink("H").any(axis=1))
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(line_height(32) / 2, abs=1)
    for char in "ẢÅgjçẴ":
        assert not ink(char)[[0, -1]].any()


@pytest.mark.parametrize("text", ["The capital of Spain is →  Madrid", "é→×—−", "W", "", " "])
def test_no_ink_is_lost_at_the_ends(text):
    mask = ink(text)
    assert mask.shape == (line_height(32), text_width(text, 32) + 2)
    padded = ink(f" {text} ")
    assert padded.sum() == pytest.approx(mask.sum(), rel=0.01)


def test_wrapping_keeps_every_character_and_the_width():
    text = "The capital of Spain is →  Madrid / Paris " + "x" * 80
    lines = wrap(text, 20, 240)
    assert all(text_width(line, 20) <= 240 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "The capital of Spain is"
    assert text_width(lines[0] + " →", 20) > 240
    assert wrap("is →  Madrid", 20, 500) == ["is →  Madrid"]
    assert wrap("", 20, 200) == [""]
