import numpy as np
import pytest
from PIL import features

from lit_attr import labels
from lit_attr.labels import drawable, line_height, text_mask, text_width, token_label, wrap


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch):
    """No system fonts, so that the same holds on every machine."""
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ())
    labels._source.cache_clear()
    text_mask.cache_clear()
    yield
    labels._source.cache_clear()
    text_mask.cache_clear()


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
        ("\x00", r"\u0000"),
        ("\u200b", r"\u200b"),
        ("\ud83d", r"\ud83d"),
        ("\ufffd", r"\ufffd"),
        ("Жß", r"\u0416\u00df"),
        ("e\u0301", "é"),
        ("\u0301", r"\u0301"),
        (" São", "␣São"),
        ("Çą", "Çą"),
        ("→×—", "→×—"),
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


def test_a_system_font_is_asked_for_what_the_embedded_one_lacks(monkeypatch):
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ("no such font.ttf", "DejaVuSans.ttf"))
    if labels._font("DejaVuSans.ttf", 16) is None:
        pytest.skip("DejaVu Sans is not installed")
    labels._source.cache_clear()
    assert drawable("Жш 日") == r"Жш \u65e5"
    assert ink("Ж").sum() > ink("-").sum()
    unprintable = [chr(code) for code in range(0x10000) if not chr(code).isprintable() and code != 0x20]
    assert all(drawable(char).startswith("\\") for char in unprintable)


def test_spaces_keep_right_to_left_words_in_one_stretch_and_part_them_from_others(monkeypatch):
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ("DejaVuSans.ttf",))
    if labels._font("DejaVuSans.ttf", 16) is None:
        pytest.skip("DejaVu Sans is not installed")
    labels._source.cache_clear()
    assert drawable("שלום") == ("שלום" if features.check("raqm") else r"\u05e9\u05dc\u05d5\u05dd")
    assert [run for run, _ in labels._runs("is Жш Жш is")] == ["is", " ", "Жш Жш", " ", "is"]


def test_right_to_left_letters_are_escaped_where_they_would_be_drawn_backwards(monkeypatch):
    monkeypatch.setattr(labels, "SYSTEM_FONTS", ("DejaVuSans.ttf",))
    if labels._font("DejaVuSans.ttf", 16) is None:
        pytest.skip("DejaVu Sans is not installed")
    monkeypatch.setattr(labels.features, "check", lambda _: False)
    labels._source.cache_clear()
    assert drawable("שЖ") == r"\u05e9Ж"


def test_an_accent_stands_on_its_letter_and_takes_the_dots_place():
    plain, accented = ink("e"), ink("é")
    assert plain.shape == accented.shape
    changed = np.argwhere(plain != accented)
    x_height = 32 - round(0.55 * 32)
    assert len(changed) and changed[:, 0].max() <= x_height
    over_i, over_u = (ink(letter)[: x_height - 1].sum() for letter in "ìù")
    assert over_i == pytest.approx(over_u, rel=0.02), "the accent alone"


def test_strong_text_is_heavier_and_underlined():
    plain, strong = ink("Spain"), ink("Spain", strong=True)
    assert plain.shape == strong.shape
    underline = (strong[:, 2:-2] == 255).all(axis=1)
    assert underline.sum() == 3 and not (plain[:, 2:-2] == 255).all(axis=1).any()
    assert strong[~underline].sum() > 1.1 * plain[~underline].sum()


@pytest.mark.parametrize("text", ["The capital of Spain is →  Madrid", "é→×—−", "W", "", " "])
def test_no_ink_is_lost_at_the_ends(text):
    mask = ink(text)
    assert mask.shape == (line_height(32), text_width(text, 32) + 2)
    padded = ink(f" {text} ")
    assert padded.sum() == pytest.approx(mask.sum(), rel=0.01)


def test_wrapping_keeps_every_character_and_the_width():
    text = "The capital of Spain is →  Madrid / Paris " + "x" * 80
    lines = wrap(text, 20, 200)
    assert all(text_width(line, 20) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "The capital of Spain is"
    assert text_width(lines[0] + " →", 20) > 200
    assert wrap("is →  Madrid", 20, 500) == ["is →  Madrid"]
    assert wrap("", 20, 200) == [""]
