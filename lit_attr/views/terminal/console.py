"""The console of a command: its width and its colours, and data as text that cannot disturb it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lit_attr.text import cut, printable

# Characters of a text from the data; a fact may have 100,000.
MOST_CHARACTERS = 2_000
# Columns of what is no terminal: lines are as long as their text.
UNBOUNDED = 1_000_000
GAP = "  "
# Around right-to-left text: what stands beside it keeps its place.
LEFT_TO_RIGHT = "\u200e"


def new_console() -> Console:
    """A console on standard output. It has the width of the terminal, or of `COLUMNS`, and none in a pipe."""
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and 0 < int(given) < UNBOUNDED else None
    if width is None and not sys.stdout.isatty():
        width = UNBOUNDED
    return Console(width=width, markup=False, emoji=False, highlight=False)


def has_shades(console: Console) -> bool:
    """Whether the console shows enough colours for a scale."""
    return console.color_system in ("256", "truecolor", "windows") and not console.no_color


def sign_style(value: float) -> str:
    """The colour of a number: red for the true answer, blue for the false one, as in the maps."""
    return "red" if value > 0 else "blue" if value < 0 else ""


def text_of(data: str, most: int = MOST_CHARACTERS) -> str:
    r"""A text from the data in one line, with what a terminal obeys escaped as in Python (``\x1b``).

    Args:
        data: The text.
        most: The most characters that are taken of it; a longer text has … in place of its middle.
    """
    line = printable(cut(data, most), keep="")
    if not line.isascii() and any(unicodedata.bidirectional(char) in ("R", "AL") for char in line):
        return f"{LEFT_TO_RIGHT}{line}{LEFT_TO_RIGHT}"
    return line


def fitted(text: Text, width: int, *, right: bool = False) -> Text:
    """A text that takes `width` columns: padded, or cut at its end.

    Args:
        text: The text.
        width: The columns.
        right: Align it to the right.
    """
    text = text.copy()
    text.truncate(width, overflow="ellipsis")
    if any(unicodedata.bidirectional(char) in ("R", "AL") for char in text.plain):
        # The mark at the end of the text may be what was cut.
        text.append(LEFT_TO_RIGHT)
    missing = width - cell_len(text.plain)
    if missing > 0:
        text = Text(" " * missing).append_text(text) if right else text.append(" " * missing)
    return text


def table_lines(
    head: Sequence[str],
    rows: Sequence[Sequence[Text]],
    *,
    width: int,
    right: frozenset[str],
    flexible: Sequence[tuple[str, int]],
) -> list[Text]:
    """The lines of a table, the names of its columns first.

    Args:
        head: The names of the columns.
        rows: The cells of each row.
        width: The width of the console.
        right: Names of columns that are aligned to the right.
        flexible: Names of columns that may be cut, and to which width: each as much as is needed before the next.
    """
    widths = {
        name: max(cell_len(name), *(cell_len(row[place].plain) for row in rows)) for place, name in enumerate(head)
    }
    for name, fewest in flexible:
        beyond = sum(widths.values()) + len(GAP) * (len(head) - 1) - width
        if beyond > 0 and name in widths:
            widths[name] = max(widths[name] - beyond, min(widths[name], max(fewest, cell_len(name))))
    lines = []
    for row in ([Text(name, "bold") for name in head], *rows):
        line = Text(GAP).join(
            fitted(cell, widths[name], right=name in right) for name, cell in zip(head, row, strict=True)
        )
        line.rstrip()
        lines.append(line)
    return lines
