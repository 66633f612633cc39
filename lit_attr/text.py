"""Text from data and settings, made fit for its use: as a name, in a picture, and on a terminal."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import unicodedata
from typing import TextIO

# File systems take 255 bytes, of which an ending, a step and the marks of a temporary file need some.
MAX_NAME_BYTES = 200
MAX_LINE_CHARACTERS = 2_000
ELLIPSIS = "…"

_HASH_DIGITS = 16
_HASHED = re.compile(rf"-[0-9a-f]{{{_HASH_DIGITS}}}\Z")
# The message about what YAML can hold and no setting has.
TOO_DEEP = "a value is nested too deeply; give one that has the form of the setting"


def safe_name(text: object, most: int = MAX_NAME_BYTES, *, hashed: bool = False) -> str:
    """Makes one part of a path, or of a logger's tag, of any text; different texts have different names.

    Letters, digits, `_`, `.` and `-` stay. A name that is not the text itself ends in a hash of the text.

    Args:
        text: The text, or a number.
        most: The most bytes of the name.
        hashed: Add the hash in any case, as for names that may be compared without regard to case.
    """
    whole = str(text)
    # Of a long text no more is looked at than can be in its name.
    name = unicodedata.normalize("NFC", re.sub(r"[^\w.-]", "_", whole[: most + 1])).lstrip(".") or "_"
    # A text that ends like a hashed name could otherwise be mistaken for one.
    if not hashed and name == whole and len(name.encode()) <= most and not _HASHED.search(name):
        return name
    digest = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()[:_HASH_DIGITS]
    head = name.encode()[: most - _HASH_DIGITS - 1].decode(errors="ignore")
    return f"{head}-{digest}"


def cut(text: str, most: int) -> str:
    """The text with … in place of its middle, if it has more than `most` characters."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}{ELLIPSIS}{text[len(text) - tail :]}"


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`: a number with its noun, which takes an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def printable(text: str, keep: str = "\n") -> str:
    r"""The text with every character that a terminal obeys, or cannot print, escaped as in Python (``\x1b``).

    Args:
        text: The text.
        keep: Characters that stay. Default: line breaks.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def print_text(text: str, stream: TextIO | None = None) -> None:
    """Prints text with what the terminal must not obey, and what its encoding lacks, escaped."""
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    print(
        printable(text, keep="\n").encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True
    )


def never_fail_to_print() -> None:
    """Has standard output and error escape what their encoding lacks: progress bars print more than ASCII has."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_error(message: str) -> None:
    """Prints a message on standard error as one line of bounded length."""
    print_text(cut(" ".join(message.split()), MAX_LINE_CHARACTERS), sys.stderr)


def readable(message: str) -> str:
    """A message of jsonargparse in one line: `KEY: 'VALUE' is not TYPE` where a value has the wrong type."""
    line = " ".join(re.sub(r'Parser key "(.*?)":', r"\1:", message).split())
    wrong_type = re.fullmatch(r"(?P<key>\S+): Expected an? (?P<types>.*?)\. Got value: (?P<value>.*)", line)
    wrong_types = re.fullmatch(
        r"(?P<key>\S+): .*Subtypes: \[(?P<types>.*)\] Errors: .* Given value: (?P<value>.*)", line
    )
    if not (found := wrong_types or wrong_type):
        return line
    types = re.sub(r"<class '(.*?)'>|typing\.Literal\[(.*?)\]", r"\1\2", found["types"]).replace(
        "NoneType", "null"
    )
    return f"{found['key']}: {found['value']!r} is not {' or '.join(types.replace(chr(39), '').split(', '))}"
