"""`scripts/list_messages.py`: all error messages, and which of them no test has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import list_messages
import pytest
from list_messages import MAX_LENGTH, find_messages, untested

SOURCE = '''
def check(value, name):
    """Refuses values."""
    if value < 1:
        raise ArgumentError("limit", f"{value} is less than one of {len(name)} rows; give more")
    reason = "it is not what anybody wants" if name else f"there is no {name}"
    raise UserError(reason)


def same(value, name, error):
    if value:
        raise UserError(f"{name}: it is not JSON ({error}); fix it")
    if name:
        raise UserError(f"{name}: it is not JSON ({error}); move it away and run")
    if error:
        raise UserError(f"trainer: {error}")
    raise UserError(f"{name} is {error}; take the other kind of file")


def other(parser):
    parser.error("config: it goes elsewhere; move it")
    print("this is not an error message")
'''
TESTS = '''
def test_check():
    """A docstring is no test: it is not what anybody wants."""
    assert str(refused) == "data.limit: 0 is less than one of 3 rows; give more"
    assert str(refused) == f"{path}: it is not JSON (no end); fix it"
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "package" / "file.py").write_text(SOURCE)
    (tmp_path / "tests" / "test_file.py").write_text(TESTS)
    return tmp_path / "package"


def test_finds_messages_with_their_settings(package: Path):
    assert [(message.setting, message.text) for message in find_messages(package)] == [
        ("limit", "{value} is less than one of {len(name)} rows; give more"),
        ("", "it is not what anybody wants"),
        ("", "there is no {name}"),
        ("", "{name}: it is not JSON ({error}); fix it"),
        ("", "{name}: it is not JSON ({error}); move it away and run"),
        ("", "trainer: {error}"),
        ("", "{name} is {error}; take the other kind of file"),
        ("", "config: it goes elsewhere; move it"),
    ]


def test_finds_those_that_no_test_has(package: Path):
    left = untested(find_messages(package), package.parent / "tests")
    # A text that others have as well is known by the whole message; one of values alone by its fix.
    assert [message.text for message in left] == [
        "it is not what anybody wants",
        "there is no {name}",
        "{name}: it is not JSON ({error}); move it away and run",
        "{name} is {error}; take the other kind of file",
        "config: it goes elsewhere; move it",
    ]


def test_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["list_messages.py"])
    list_messages.main()
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "| where | raised by | setting | message |"
    assert len(rows) == len(find_messages()) > 200
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_our_messages_are_short_can_be_typed_and_have_no_false_plurals():
    for message in find_messages():
        assert message.length <= MAX_LENGTH, message
        # A minus sign looks like one that can be typed; in prose, arrows and times signs cannot be mistaken.
        assert "\N{MINUS SIGN}" not in message.text, message
        assert not message.text.endswith((".", ";", " ")), message
        assert not re.search(r"\b1 (contrasts|rows|facts|tokens|layers)\b", message.text), message
