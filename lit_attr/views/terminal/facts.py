"""The list of a run's facts on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_attr.views.terminal.console import sign_style, table_lines, text_of

# Narrower consoles have no room for the relation.
WIDE = 100
NUMBERS = frozenset({"id", "step", "diff", "rank", "error", "largest"})


def draw_facts(
    console: Console,
    rows: Sequence[Mapping[str, Any]],
    *,
    words: Sequence[str],
    steps: bool,
    errors: bool,
    relations: bool,
) -> Iterator[Text]:
    """Draws the list.

    Args:
        console: Where it is printed.
        rows: The contrasts, as `listed` has them.
        words: Words that are looked for; they are shown in bold.
        steps: Whether facts have several steps, so that a column names it.
        errors: Whether there are exact effects, so that a column has the relative error.
        relations: Whether there are several relations, so that a column names it where there is room.

    Yields:
        The lines, the names of the columns first.
    """
    optional = {"step": steps, "error": errors, "relation": relations and console.width >= WIDE}
    head = ["id", "step", "diff", "rank", "largest", "error", "relation", "prompt", "true", "false"]
    head = [name for name in head if optional.get(name, True)]
    cells = [_cells(row, words) for row in rows]
    lines = table_lines(
        head,
        [[each[name] for name in head] for each in cells],
        width=console.width,
        right=NUMBERS,
        flexible=(("prompt", 24), ("true", 8), ("false", 8), ("relation", 8), ("id", 8), ("prompt", 8)),
    )
    return iter(lines)


def _cells(row: Mapping[str, Any], words: Sequence[str]) -> dict[str, Text]:
    largest, error = row["largest"], row["error"]
    cells = {
        "id": Text(text_of(str(row["id"]))),
        "step": Text(str(row["step"])),
        "diff": Text(f"{row['logit_diff']:+.2f}", sign_style(row["logit_diff"])),
        "rank": Text(str(row["rank_true"])),
        "largest": Text(f"{largest['score']:+#.3g} L{largest['layer']} t{largest['token']}"),
        "error": Text("" if error is None else f"{error:.2f}"),
        "relation": Text(text_of(row["relation"])),
    }
    for name, field in (("prompt", "prompt"), ("true", "target_true"), ("false", "target_false")):
        text = Text(text_of(row[field].strip()))
        text.highlight_words(words, style="bold reverse", case_sensitive=False)
        cells[name] = text
    return cells
