"""Cells of a row: text, whole numbers and ids, checked before anything else reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral
from typing import Any

from lit_attr.errors import RowError
from lit_attr.text import printable as escaped

ID_COLUMNS = ("id", "case_id")
# Longer texts come from broken rows: no fact needs them, and a tokenizer would take minutes.
MAX_CHARACTERS = 100_000
# Of an id, as text or in digits.
MAX_ID_CHARACTERS = 1_000
MAX_SHOWN_ID_CHARACTERS = 100
# Surrogates, and control characters other than tabs and line ends.
_REFUSED_CHARACTERS = re.compile(r"[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    r"""A text with every character that a terminal acts on, or cannot print, escaped as in Python (``\x1b``)."""
    return escaped(text, keep="")


def plain(value: Any) -> Any:
    """The Python value of a NumPy scalar or of a tensor without dimensions; anything else as it is."""
    if isinstance(value, str | int | float) or getattr(value, "shape", None) != ():
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError):  # a tensor without data
        return value


def is_empty(value: Any) -> bool:
    """Whether a cell is empty: None, empty text, or the NaN that tables put there."""
    value = plain(value)
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)


def whole_number(value: Any, column: str) -> int | None:
    """A cell's whole number, or None where the cell holds something else.

    Raises:
        RowError: The number is too long.
    """
    value = plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with empty cells store whole numbers as floats
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    number = int(value)
    if abs(number) >= 10**MAX_ID_CHARACTERS:
        raise RowError(f"{column!r} has more than {MAX_ID_CHARACTERS:,} digits")
    return number


def required_text(row: Mapping[str, Any], column: str) -> str:
    """A cell's text.

    Raises:
        RowError: The cell is missing, blank, or not text.
    """
    value = plain(row.get(column))
    if value is None:
        raise RowError(f"{column!r} is missing")
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return checked_text(value, column)


def checked_text(value: str, column: str, most: int = MAX_CHARACTERS) -> str:
    """The text itself, if it is at most `most` characters long and of characters that can be printed.

    Raises:
        RowError: It is longer, or has a surrogate or a control character in it.
    """
    if len(value) > most:
        raise RowError(f"{column!r} has {len(value):,} characters, more than {most:,}")
    refused = _REFUSED_CHARACTERS.search(value)
    if refused is not None:
        if "\ud800" <= refused[0] <= "\udfff":
            raise RowError(f"{column!r} is not Unicode text (surrogates not allowed)")
        raise RowError(f"{column!r} has the control character U+{ord(refused[0]):04X}")
    # Libraries have subclasses of str, which would show in what is hashed or printed.
    return str(value)


def row_id(row: Mapping[str, Any], default: int | str) -> int | str:
    """A row's own id: its `id`, else its `case_id`, else `default`. Digits written as text become a number.

    Raises:
        RowError: The id is neither a whole number nor text, or too long.
    """
    for column in ID_COLUMNS:
        found = id_in(row, column)
        if found is not None:
            return found
    return default


def id_in(row: Mapping[str, Any], column: str) -> int | str | None:
    """The id in a cell, None where the cell is empty. Digits written as text become a number.

    Raises:
        RowError: The cell is neither a whole number nor text, or too long.
    """
    value = plain(row.get(column))
    if is_empty(value):
        return None
    number = whole_number(value, column)
    if number is not None:
        # JSON readers hold whole numbers in 64 bits.
        return number if abs(number) < 2**63 else str(number)
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {type(value).__name__}, not a whole number or text")
    text = checked_text(value, column, MAX_ID_CHARACTERS)
    digits = text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text
    return int(text) if digits else text


def shown_id(row: Mapping[str, Any], row_number: int) -> int | str:
    """The id under which a refused row is reported; an invalid one as far as it can be shown."""
    try:
        return row_id(row, row_number)
    except RowError:
        texts = [row[column] for column in ID_COLUMNS if isinstance(row.get(column), str)]
        return texts[0][:MAX_SHOWN_ID_CHARACTERS] if texts else row_number


def relation_id_of(row: Mapping[str, Any]) -> str:
    """A row's `relation_id` as text, empty where it has none.

    Raises:
        RowError: It is neither a whole number nor text.
    """
    value = row.get("relation_id")
    if is_empty(value):
        return ""
    number = whole_number(value, "relation_id")
    return str(number) if number is not None else required_text(row, "relation_id")
