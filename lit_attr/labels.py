r"""Text for pictures: what a font can draw, and honest escapes for what it cannot.

Pillow's embedded font is always there, has 111 characters, and looks the same on every machine, so it comes first.
It lacks the accents, dashes and signs that facts are full of: those are drawn from strokes on top of it. Other
scripts come from a system font where one is found, and are written as ``\uXXXX`` where none is.
"""

import math
import unicodedata
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFont, features

Polyline = tuple[tuple[float, float], ...]

SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "seguisym.ttf",
    "msyh.ttc",
)
SPACE = "␣"
EMBEDDED, STROKES = "embedded", "strokes"
MAX_LABEL_CHARS = 16
ZOOM = 4
ESCAPES = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": r"\\"}

# Units of the font size; y is upwards from the baseline.
SIGNS: dict[str, tuple[float, tuple[Polyline, ...]]] = {
    " ": (0.26, ()),  # the font's own is tight enough to run words together
    SPACE: (0.44, (((0.05, 0.08), (0.05, -0.07), (0.37, -0.07), (0.37, 0.08)),)),
    "→": (1.0, (((0.08, 0.29), (0.9, 0.29)), ((0.64, 0.52), (0.9, 0.29), (0.64, 0.06)))),
    "\N{MULTIPLICATION SIGN}": (0.58, (((0.11, 0.47), (0.47, 0.11)), ((0.11, 0.11), (0.47, 0.47)))),
    "\N{MINUS SIGN}": (0.58, (((0.06, 0.29), (0.52, 0.29)),)),
    "\N{EN DASH}": (0.5, (((0.02, 0.29), (0.48, 0.29)),)),
    "—": (1.0, (((0.02, 0.29), (0.98, 0.29)),)),
}
# x from the middle of the letter; y from its top (0.71 for capitals, 0.55 for small letters) or the baseline.
MARKS_ABOVE: dict[str, tuple[Polyline, ...]] = {
    "\N{COMBINING GRAVE ACCENT}": (((-0.12, 0.22), (0.03, 0.09)),),
    "\N{COMBINING ACUTE ACCENT}": (((0.12, 0.22), (-0.03, 0.09)),),
    "\N{COMBINING CIRCUMFLEX ACCENT}": (((-0.14, 0.08), (0.0, 0.2), (0.14, 0.08)),),
    "\N{COMBINING CARON}": (((-0.14, 0.2), (0.0, 0.08), (0.14, 0.2)),),
    "\N{COMBINING TILDE}": (((-0.17, 0.1), (-0.09, 0.17), (0.08, 0.11), (0.17, 0.18)),),
    "\N{COMBINING MACRON}": (((-0.15, 0.14), (0.15, 0.14)),),
    "\N{COMBINING BREVE}": (((-0.14, 0.2), (-0.08, 0.11), (0.08, 0.11), (0.14, 0.2)),),
    "\N{COMBINING DIAERESIS}": (((-0.12, 0.12), (-0.12, 0.17)), ((0.12, 0.12), (0.12, 0.17))),
    "\N{COMBINING DOT ABOVE}": (((0.0, 0.12), (0.0, 0.17)),),
    "\N{COMBINING RING ABOVE}": (
        (
            (0, 0.05),
            (-0.08, 0.08),
            (-0.1, 0.15),
            (-0.08, 0.22),
            (0, 0.25),
            (0.08, 0.22),
            (0.1, 0.15),
            (0.08, 0.08),
            (0, 0.05),
        ),
    ),
    "\N{COMBINING DOUBLE ACUTE ACCENT}": (((-0.02, 0.22), (-0.13, 0.09)), ((0.17, 0.22), (0.06, 0.09))),
}
MARKS_BELOW: dict[str, tuple[Polyline, ...]] = {
    "\N{COMBINING CEDILLA}": (((0.02, -0.02), (0.07, -0.12), (0.0, -0.19), (-0.1, -0.18)),),
    "\N{COMBINING OGONEK}": (((0.1, 0.0), (0.03, -0.12), (0.08, -0.19), (0.16, -0.18)),),
}


def token_label(token: str) -> str:
    r"""A token as an axis label: spaces as ``␣``, nothing invisible, nothing undrawable, 16 characters or so.

    Args:
        token: the token's text as the tokenizer decodes it; ``" capital"`` becomes ``␣capital``.

    Returns:
        Drawable text. Newlines, tabs and characters that no font here can draw are escaped as in Python
        (``\n``, ``\u65e5``); a long label loses its middle to ``…``; the empty token is ``""`` with its quotes.
    """
    pieces = [_escape(char) for char in unicodedata.normalize("NFC", token.replace(" ", SPACE))]
    if sum(map(len, pieces)) <= MAX_LABEL_CHARS:
        return "".join(pieces) or '""'
    head, tail = [pieces.pop(0)], [pieces.pop()]
    # Whole pieces only: half an escape would read as another character.
    while pieces:
        side, piece = (head, pieces.pop(0)) if len(head) <= len(tail) else (tail, pieces.pop())
        if sum(map(len, head + tail)) + len(piece) >= MAX_LABEL_CHARS:
            break
        side.append(piece)
    return "".join(head) + "…" + "".join(reversed(tail))


def drawable(text: str) -> str:
    r"""Text for a title: as it stands, what no font here can draw escaped as in Python (``\u65e5``)."""
    return "".join(map(_escape, unicodedata.normalize("NFC", text)))


def text_width(text: str, size: int) -> int:
    """Width in pixels of drawable ``text`` at font size ``size``."""
    return math.ceil(sum(_advance(run, source, size * ZOOM) for run, source in _runs(text)) / ZOOM)


def line_height(size: int) -> int:
    """Height in pixels of every mask that :func:`text_mask` returns for one line at font size ``size``."""
    return round(1.35 * size)


@lru_cache(maxsize=1024)
def text_mask(text: str, size: int, strong: bool = False) -> Image.Image:
    """One line of drawable text as a mask.

    Args:
        text: what :func:`token_label` or :func:`drawable` returned.
        size: font size, pixels.
        strong: bold and underlined.

    Returns:
        Mode ``L``, 255 where ink is, ``line_height(size)`` high, with one pixel of air at either end. Cached: do
        not draw on it.
    """
    # Drawn large and reduced: letters then stand where they should, not at whole pixels.
    large, zoomed = size * ZOOM, Image.new("L", ((text_width(text, size) + 2) * ZOOM, line_height(size) * ZOOM))
    x = float(ZOOM)
    for run, source in _runs(text):
        if source == STROKES:
            _draw_strokes(zoomed, run, x, large)
        else:
            ImageDraw.Draw(zoomed).text((x, large), run, fill=255, font=_font(source, large), anchor="ls")
        x += _advance(run, source, large)
    if strong:
        zoomed = ImageChops.lighter(zoomed, ImageChops.offset(zoomed, ZOOM * 3 // 4, 0))
    mask = zoomed.reduce(ZOOM)
    if strong:
        y = size + round(0.24 * size)
        ImageDraw.Draw(mask).line((1, y, mask.width - 2, y), fill=255, width=max(1, size // 10))
    return mask


def wrap(text: str, size: int, width: int) -> list[str]:
    """Drawable text broken into lines of at most ``width`` pixels: at spaces, within a word only if it must be."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if text_width(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for char in word:
            if line and text_width(line + char, size) > width:
                lines.append(line)
                line = ""
            line += char
    return [*lines, line]


def _escape(char: str) -> str:
    if char in ESCAPES:
        return ESCAPES[char]
    if _source(char) is not None:
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


@lru_cache(maxsize=4096)
def _source(char: str) -> str | None:
    """What draws this character: EMBEDDED, STROKES, the name of a system font, or None."""
    if char in SIGNS or _mark(char):
        return STROKES
    if _has_glyph(EMBEDDED, char):
        return EMBEDDED
    # Without Raqm, Pillow draws right-to-left text backwards.
    if unicodedata.bidirectional(char) in ("R", "AL") and not features.check("raqm"):
        return None
    return next((name for name in SYSTEM_FONTS if _has_glyph(name, char)), None)


def _has_glyph(source: str, char: str) -> bool:
    """Whether the font draws ``char`` as something other than nothing or its .notdef box."""
    font = _font(source, 16)
    if font is None or not char.isprintable():
        return False
    glyph, missing = font.getmask(char), font.getmask("\U0010fffe")
    return glyph.getbbox() is not None and (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))


@lru_cache(maxsize=64)
def _font(source: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The embedded font, or a system font by its file name; None where the machine lacks it."""
    if source == EMBEDDED:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    try:
        return ImageFont.truetype(source, size)
    except OSError:
        return None


def _runs(text: str) -> list[tuple[str, str]]:
    """Drawable text as (stretch, source): neighbours of one font together, strokes one by one."""
    runs: list[tuple[str, str]] = []
    for index, char in enumerate(text):
        source = _source(char) or EMBEDDED
        if char == " " and runs and runs[-1][1] == _source(text[index + 1 : index + 2] or " ") != EMBEDDED:
            source = runs[-1][1]  # right-to-left words keep their order only within one stretch
        if runs and source == runs[-1][1] != STROKES:
            runs[-1] = (runs[-1][0] + char, source)
        else:
            runs.append((char, source))
    return runs


def _advance(run: str, source: str, size: int) -> float:
    if run in SIGNS and source == STROKES:
        return SIGNS[run][0] * size
    if source == STROKES:
        run, source = unicodedata.normalize("NFD", run)[0], EMBEDDED
    font = _font(source, size)
    return font.getlength(run) if font else 0.0


def _mark(char: str) -> tuple[Polyline, ...]:
    """Strokes of the accent on a letter such as ``é``; none if ``char`` is not a letter with one known mark."""
    decomposed = unicodedata.normalize("NFD", char)
    base, mark = decomposed[0], decomposed[1:]
    if not (base.isascii() and base.isalpha()):
        return ()
    if mark in MARKS_BELOW:
        return MARKS_BELOW[mark]
    top = 0.71 if base.isupper() or base in "bdfhklt" else 0.55
    return tuple(tuple((x, y + top) for x, y in line) for line in MARKS_ABOVE.get(mark, ()))


def _draw_strokes(mask: Image.Image, char: str, x: float, size: int) -> None:
    """Draws a sign, or a letter and its accent, with its left end at ``x``."""
    if char in SIGNS:
        left, lines = x, SIGNS[char][1]
    else:
        base = unicodedata.normalize("NFD", char)[0]
        width, draw = _advance(base, EMBEDDED, size), ImageDraw.Draw(mask)
        draw.text((x, size), base, fill=255, font=_font(EMBEDDED, size), anchor="ls")
        left, lines = x + width / 2, _mark(char)
        if base in "ij" and char != "į":
            # The accent takes the place of the dot.
            draw.rectangle((x, 0, x + width, round(0.41 * size)), fill=0)
    pen = ImageDraw.Draw(mask)
    for line in lines:
        points = [(left + px * size, (1 - py) * size) for px, py in line]
        pen.line(points, fill=255, width=round(0.075 * size), joint="curve")
