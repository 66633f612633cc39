"""Text as names, in bounded length, and on terminals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from lit_attr.text import cut, print_text, printable, safe_name

LIKE = safe_name("a/b")
DIFFERENT: list[Any] = [
    *("a/b", "a b", "a_b", "a.b", ".a", "a", "..", ".", "", "_", LIKE, f"{LIKE}x"),
    *("x" * 999 + "1", "x" * 999 + "2", "x" * 200, "x" * 201, "日" * 100, "日" * 101, "日" * 66, "日" * 67),
    # Composed and decomposed, which some file systems take for the same.
    *("\u00e9", "e\u0301", "\ud800", "\udfff", 7, -7, "../../etc/passwd", "/abs", "a\\b", "a\0b"),
]


def test_different_texts_have_different_names():
    names = [safe_name(text) for text in DIFFERENT]
    assert len(set(names)) == len(DIFFERENT)


@pytest.mark.parametrize("text", DIFFERENT, ids=repr)
def test_a_name_is_one_part_of_a_path(text: Any):
    for most in (200, 40):
        name = safe_name(text, most)
        assert Path(name).name == name
        assert 0 < len(name.encode()) <= most
        assert not name.startswith(".")


@pytest.mark.parametrize("text", ["P36", "known_1000", "a-b.c", "日本", 1234, -1, "x" * 200])
def test_a_safe_text_is_its_own_name(text: Any):
    assert safe_name(text) == str(text)
    assert safe_name(text, hashed=True) != str(text)


def test_a_long_text_loses_its_middle():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abc…fg"
    assert len(cut("x" * 100_000, 80)) == 80


def test_what_a_terminal_would_obey_is_shown():
    assert printable("\x1b[31mred\x9b0m\a\rover\u202eflow") == "\\x1b[31mred\\x9b0m\\x07\\rover\\u202eflow"
    assert printable("two\nlines, 日本 −1") == "two\nlines, 日本 −1"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("ascii", "\\u2212 \\xe9 \\udcff"), ("latin-1", "\\u2212 é \\udcff"), ("utf-8", "− é \\udcff")],
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, shown: str):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    print_text("− é \udcff", stream)
    stream.seek(0)
    assert stream.read() == f"{shown}\n"
