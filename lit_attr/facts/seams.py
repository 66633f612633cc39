"""What joins a prompt and an answer: a space, or nothing in scripts that have none between words."""

from __future__ import annotations

import unicodedata

from lit_attr.errors import ArgumentError, RowError
from lit_attr.facts.cells import checked_text

# The separator that the characters at the seam of prompt and answer decide.
AUTO = "auto"
# Scripts without spaces between words (Line_Break=SA), by the beginnings of their characters' Unicode names.
SOUTH_EAST_ASIAN = ("THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ", "NEW TAI LUE ", "AHOM ")
ZERO_WIDTH_SPACE = "\u200b"
# How far to look back from the end of a prompt for a letter.
MAX_SEAM_CHARACTERS = 64


def continuation(prompt: str, answer: str, separator: str = AUTO) -> tuple[str, bool]:
    """The answer as it continues the prompt, without spaces at its end.

    White space that the row has at the end of the prompt or at the beginning of the answer stays the only one.

    Args:
        prompt: The prompt.
        answer: The answer.
        separator: What to put between the two where the row has no white space there. `auto` puts a space, except
            where the characters at the seam need none, see :func:`joins_without_space`.

    Returns:
        The answer, and whether `auto` has put a space before it.
    """
    answer = answer.rstrip()
    if prompt[-1:].isspace():
        return answer.lstrip(), False
    if answer[:1].isspace():
        return answer, False
    if separator != AUTO:
        return f"{separator}{answer}", False
    return (answer, False) if joins_without_space(prompt, answer) else (f" {answer}", True)


def joins_without_space(prompt: str, answer: str) -> bool:
    """Whether the characters at the seam of prompt and answer stand side by side without a space.

    They do after a Chinese or Japanese character, wide punctuation included, between two characters of the
    scripts of Thai, Lao, Khmer and Burmese, and after an opening bracket or quotation mark. Digits and other
    punctuation at the end of the prompt follow the nearest letter before them in the same word.
    """
    if prompt.endswith(ZERO_WIDTH_SPACE) or answer.startswith(ZERO_WIDTH_SPACE):
        return True
    if unicodedata.category(prompt[-1:] or " ") in ("Ps", "Pi"):
        return True
    word = "".join(prompt[-MAX_SEAM_CHARACTERS:].split()[-1:])
    for last in reversed(word):
        kind = unicodedata.category(last)[0]
        if _is_east_asian(last, kind):
            return True
        if unicodedata.name(last, "").startswith(SOUTH_EAST_ASIAN):
            first = answer[:1]
            is_first = unicodedata.name(first, "").startswith(SOUTH_EAST_ASIAN)
            return kind != "P" and (is_first or _is_east_asian(first, unicodedata.category(first)[0]))
        if kind == "L":
            return False
    return False


def _is_east_asian(character: str, kind: str) -> bool:
    # Emoji are wide as well, and Korean has wide letters but spaces between its words.
    wide = unicodedata.east_asian_width(character) in ("W", "F", "H")
    return wide and kind in "LMNP" and "HANGUL" not in unicodedata.name(character, "")


def check_separator(separator: str) -> None:
    """Checks that a separator can stand in a text.

    Raises:
        ArgumentError: It has characters that no text has.
    """
    try:
        checked_text(separator, "answer_separator")
    except RowError as error:
        raise ArgumentError("answer_separator", f"it cannot stand in a text: {error}") from error
