"""The look of the figures for print: sizes, fonts and colours, and text that fits into them."""

from __future__ import annotations

import unicodedata
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure

from lit_attr.text import cut
from lit_attr.views.labels import drawable, token_label, wrap

WIDTH = 7.0  # inches, of every figure: two columns of a journal
POINTS = 72  # of an inch
SMALL = 7  # points, the size of most text
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    # A prompt's dollar signs are dollar signs.
    "text.parse_math": False,
    # Text stays editable, and the same figure gives the same file.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "lit-attr",
}
GROUND, GREY, INK = "#eeeeee", "#c4c4c4", "#181818"
# Okabe and Ito's, safe for colour-blind readers, without the pale yellow.
COLOURS = ("#999999", "#56b4e9", "#0072b2", "#d55e00", "#e69f00", "#009e73", "#000000", "#cc79a7")
DASHES = ("-", "--", "-.", ":")
MAX_TEXT = {"token": 20, "prompt": 120, "answer": 32, "example": 60, "run": 40}  # characters

_FONTS = [font_manager.get_font(font_manager.findfont(name)) for name in ("DejaVu Sans", "DejaVu Sans:bold")]
# Older versions of matplotlib misplace right-to-left letters and combining marks.
_DRAWN = {
    char
    for char in map(chr, set.intersection(*(set(font.get_charmap()) for font in _FONTS)))
    if unicodedata.bidirectional(char) not in ("R", "AL") and unicodedata.category(char)[0] != "M"
}


def fit(text: str, kind: str) -> str:
    """Text that matplotlib's own font draws, with the rest escaped and the middle of a long text left out.

    Args:
        text: The text.
        kind: A key of `MAX_TEXT`, which says how many characters fit.
    """
    label = token_label(text) if kind == "token" else drawable(cut(text, 4 * MAX_TEXT[kind]))
    pieces = [char if char in _DRAWN else char.encode("unicode_escape").decode() for char in label]
    length, most = sum(map(len, pieces)), MAX_TEXT[kind]
    if length > most:
        while length >= most:
            length -= len(pieces.pop(len(pieces) // 2))
        pieces.insert((len(pieces) + 1) // 2, "…")
    return "".join(pieces)


def wrapped(text: str, width: int) -> str:
    """Text broken into lines of at most `width` points."""
    return "\n".join(line for paragraph in text.splitlines() for line in wrap(paragraph, SMALL, width))


def signed(number: float) -> str:
    """A number with its sign and three significant digits."""
    return f"{number:+#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def new_figure(height: float, note: str) -> Figure:
    """An empty figure of `height` inches with a note at its foot."""
    # pyplot would keep every figure and may need a display.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.supxlabel(wrapped(note, int((WIDTH - 0.5) * POINTS)), fontsize=SMALL, x=0.02, ha="left")
    return figure
