r"""Text for pictures: characters that a font draws, and Python's escapes for the others.

DejaVu comes with matplotlib, so pictures look the same on every machine. What it lacks, such as Chinese, comes
from a system font, or is written as ``\uXXXX`` where no font has it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from lit_attr.text import ELLIPSIS, cut

_MATPLOTLIB = find_spec("matplotlib")  # not imported: only its files are needed
if _MATPLOTLIB is None or _MATPLOTLIB.origin is None:
    raise ImportError("matplotlib is not installed; it contains the fonts")
_FONTS = Path(_MATPLOTLIB.origin).parent / "mpl-data" / "fonts" / "ttf"
REGULAR, BOLD = str(_FONTS / "DejaVuSans.ttf"), str(_FONTS / "DejaVuSans-Bold.ttf")
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "msyh.ttc", "seguisym.ttf")

SPACE = "␣"
MAX_LABEL_CHARS = 16
MAX_TEXT_CHARS = 4_000
# A plain backslash would read as an escape, and a plain U+FFFD as a missing glyph instead of a token cut in two.
ESCAPED = "\\\ufffd"
# Between right-to-left words, prompt → true / false keep their order and a leading ␣ stands where reading starts.
DIRECTIONS = str.maketrans({"→": "\u200e→\u200e", "/": "\u200e/\u200e", SPACE: f"\u200f{SPACE}\u200f"})
ZOOM = 4


def token_label(token: str) -> str:
    r"""A token as an axis label of about 16 drawable characters, spaces as ``␣``.

    Args:
        token: The token's text as the tokenizer decodes it; ``" capital"`` becomes ``␣capital``.

    Returns:
        Drawable text. Newlines, tabs and characters that no font draws are escaped as in Python
        (``\n``, ``\u65e5``); a long label has ``…`` in place of its middle; the empty token is ``""``.
    """
    # No more of a long token than can be left of it.
    pieces = _pieces(cut(token, 4 * MAX_LABEL_CHARS).replace(" ", SPACE))
    return "".join(_without_middle(pieces, MAX_LABEL_CHARS)) or '""'


def drawable(text: str, most: int = MAX_TEXT_CHARS) -> str:
    r"""Text for a title, with what no font draws escaped as in Python (``\u65e5``).

    Args:
        text: The text.
        most: The most characters of the result; a longer one has ``…`` in place of its middle.
    """
    return "".join(_without_middle(_pieces(cut(text, most)), most))


def shortened(text: str, most: int) -> str:
    """Text of which at most `most` characters are drawn, escapes counted, with ``…`` in place of its middle."""
    text = cut(text, most)
    drawn = len(drawable(text))
    return text if drawn <= most else cut(text, max(1, most * len(text) // drawn))


def text_width(text: str, size: int, strong: bool = False) -> int:
    """The width in pixels of drawable ``text`` at font size ``size``."""
    return math.ceil(sum(font.getlength(run) for run, font in _runs(text, size * ZOOM, strong)) / ZOOM)


def line_height(size: int) -> int:
    """The height in pixels of every mask that :func:`text_mask` returns at font size ``size``."""
    return round(1.45 * size)


@lru_cache(maxsize=1024)
def text_mask(text: str, size: int, strong: bool = False) -> Image.Image:
    """One line of drawable text as a mask: mode ``L``, 255 where ink is, ``line_height(size)`` high.

    It is bold if ``strong`` and has one pixel of margin at either end. It is cached: do not draw on it.
    """
    # Drawn large and reduced, letters need not stand at whole pixels.
    zoomed = Image.new("L", ((text_width(text, size, strong) + 2) * ZOOM, line_height(size) * ZOOM))
    draw, x = ImageDraw.Draw(zoomed), float(ZOOM)
    for run, font in _runs(text, size * ZOOM, strong):
        # At this baseline capitals are vertically centred, and Vietnamese ones keep their accents.
        draw.text((x, 1.1 * size * ZOOM), run, fill=255, font=font, anchor="ls")
        x += font.getlength(run)
    return zoomed.reduce(ZOOM)


def wrap(text: str, size: int, width: int) -> list[str]:
    """Drawable text in lines of at most ``width`` pixels, broken at spaces, or within a word that is too long."""
    lines = []
    start = 0
    while (end := _end_of_line(text, start, size, width)) < len(text):
        space = text.rfind(" ", start + 1, end + 1)
        end = end if space < 0 else space
        lines.append(text[start:end])
        start = end + text.startswith(" ", end)
    return [*lines, text[start:]]


def _end_of_line(text: str, start: int, size: int, width: int) -> int:
    """Where the line that begins at `start` ends, after at least one character."""

    def fits(count: int) -> bool:
        return text_width(text[start : start + count], size) <= width

    # Only as much of the text as may fit is measured, or a long one would take time squared.
    left = len(text) - start
    fitting, beyond = 0, min(64, left)
    while fits(beyond):
        if beyond == left:
            return len(text)
        fitting, beyond = beyond, min(2 * beyond, left)
    # Characters are of similar widths, so that few guesses suffice.
    while beyond - fitting > 1:
        share = width / max(text_width(text[start : start + beyond], size), 1)
        middle = min(max(round(beyond * share), fitting + 1), beyond - 1)
        if fits(middle):
            fitting = middle
            if not fits(middle + 1):
                break
        else:
            beyond = middle
    return start + max(fitting, 1)


def _without_middle(pieces: list[str], most: int) -> list[str]:
    length = sum(map(len, pieces))
    if length > most:
        while length >= most:
            # Whole pieces only: half an escape would read as another character.
            length -= len(pieces.pop(len(pieces) // 2))
        pieces.insert((len(pieces) + 1) // 2, ELLIPSIS)
    return pieces


def _pieces(text: str) -> list[str]:
    """The characters, drawable or escaped; a letter and its combining marks are one piece."""
    pieces: list[str] = []
    for char in unicodedata.normalize("NFC", text):
        font, base = char not in ESCAPED and _source(char), pieces[-1][0] if pieces else ""
        if font and unicodedata.category(char)[0] != "M":
            pieces.append(char)
        elif font and base.isalpha() and font == _source(base):
            pieces[-1] += char
        else:
            pieces.append(char.encode("unicode_escape").decode())
    return pieces


def _needs_raqm(text: str) -> bool:
    """Whether the text has right-to-left letters or combining marks, which only Raqm places correctly."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M" for c in text)


@lru_cache(maxsize=65_536)
def _source(char: str, strong: bool = False) -> str | None:
    """The first font that has a glyph for this character."""
    if not char.isprintable() or (_needs_raqm(char) and not features.check("raqm")):
        return None
    for source in (*([BOLD] if strong else []), REGULAR, *SYSTEM_FONTS):
        if font := _font(source, 16):
            glyph, missing = font.getmask(char), font.getmask("\U0010fffe")
            if char == " " or (glyph.getbbox() and bytes(glyph) != bytes(missing)):
                return source
    return None


@lru_cache(maxsize=64)
def _font(source: str, size: int, raqm: bool = False) -> ImageFont.FreeTypeFont | None:
    """A font by its path, or a system font by its file name; None where it is not installed."""
    # Raqm kerns, and not every machine has it; used only where needed, it leaves other text the same everywhere.
    engine = ImageFont.Layout.RAQM if raqm else ImageFont.Layout.BASIC
    try:
        return ImageFont.truetype(source, size, layout_engine=engine)
    except OSError:
        return None


def _runs(text: str, size: int, strong: bool) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Drawable text in runs of one font each, from left to right."""
    for source, chars in groupby(text, lambda char: _source(char, strong) or REGULAR):
        run = "".join(chars)
        raqm = _needs_raqm(run)
        font = _font(source, size, raqm)
        assert font, f"{source} is missing"
        yield "\u200e" + run.translate(DIRECTIONS) if raqm else run, font
