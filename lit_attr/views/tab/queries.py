"""What a request asks for. A value that is not allowed is an error of one line; none of them becomes a path."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import get_args

from lit_attr.evaluation.index import Sort
from lit_attr.evaluation.index.selection import Selection, words_of
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.text import cut

PAGE_SIZE, MOST_ROWS = 50, 200
MOST_CHARACTERS = 500
MOST_DIGITS = 15
SORTS = (*get_args(Sort), "cell")
TABLE = frozenset(
    {"component", "search", "relation", "known", "preferred", "checked", "sort", "order", "layer", "role"}
)
PAGED = TABLE | {"page", "size"}


class RequestError(Exception):
    """A request that cannot be answered.

    Args:
        line: What is wrong, in one line.
        status: The status of the answer.
    """

    def __init__(self, line: str, status: int = 400) -> None:
        super().__init__(" ".join(cut(line, MOST_CHARACTERS).split()))
        self.status = status


def check_names(given: Mapping[str, list[str]], allowed: Collection[str]) -> dict[str, str]:
    """The parameters of a request, each given once.

    Raises:
        RequestError: One is unknown, is given twice, or is too long.
    """
    for name, values in given.items():
        if name not in allowed:
            raise RequestError(f"{_shown(name)} is no parameter; there are {', '.join(sorted(allowed))}")
        if len(values) != 1:
            raise RequestError(f"{name} is given {len(values)} times; give it once")
        if len(values[0]) > MOST_CHARACTERS:
            raise RequestError(f"{name} has {len(values[0])} characters; give at most {MOST_CHARACTERS}")
    return {name: values[0] for name, values in given.items()}


def table_query(given: Mapping[str, str]) -> Selection:
    """What a request asks of the table.

    Raises:
        RequestError: A value is not allowed.
    """
    sort = _choice(given, "sort", SORTS) or "id"
    cell = None
    if "layer" in given or "role" in given:
        cell = whole(given, "layer"), MEAN_ROLES.index(_choice(given, "role", MEAN_ROLES) or _missing("role"))
    elif sort == "cell":
        _missing("layer")
    return Selection(
        component=given.get("component"),
        words=words_of(given.get("search", "")),
        relation=given.get("relation"),
        known=_flag(given, "known"),
        preferred=_flag(given, "preferred"),
        checked=_flag(given, "checked"),
        sort=sort,
        descending=_choice(given, "order", ("asc", "desc")) == "desc",
        cell=cell,
    )


def page_of(given: Mapping[str, str]) -> tuple[int, int]:
    """The number of a page, from 1, and how many rows it has.

    Raises:
        RequestError: A number is out of range.
    """
    page, size = whole(given, "page", "1"), whole(given, "size", str(PAGE_SIZE))
    if page < 1:
        raise RequestError("page: pages are numbered from 1")
    if not 1 <= size <= MOST_ROWS:
        raise RequestError(f"size: a page has 1 to {MOST_ROWS} rows")
    return page, size


def key_of(given: Mapping[str, str]) -> ContrastKey:
    """The id of a fact, in JSON (a number, or a text in quotes), and the step.

    Raises:
        RequestError: One is missing or has another form.
    """
    text = given.get("id") or _missing("id")
    try:
        identity = json.loads(text)
    except (ValueError, RecursionError):
        identity = None
    if isinstance(identity, bool) or not isinstance(identity, (int, str)):
        raise RequestError(f"id: {_shown(text)} is no number and no text in quotes")
    return identity, whole(given, "step", "0")


def whole(given: Mapping[str, str], name: str, default: str | None = None) -> int:
    """A whole number of at least 0.

    Raises:
        RequestError: It is missing or has another form.
    """
    text = given.get(name, default)
    if text is None:
        _missing(name)
    elif text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS:
        return int(text)
    raise RequestError(f"{name}: {_shown(text or '')} is no whole number of at most {MOST_DIGITS} digits")


def _flag(given: Mapping[str, str], name: str) -> bool | None:
    word = _choice(given, name, ("yes", "no"))
    return None if word is None else word == "yes"


def _choice(given: Mapping[str, str], name: str, words: Collection[str]) -> str | None:
    word = given.get(name)
    if word is not None and word not in words:
        raise RequestError(f"{name}: {_shown(word)} is none of {', '.join(words)}")
    return word


def _missing(name: str) -> str:
    raise RequestError(f"{name} is missing")


def _shown(text: str) -> str:
    return ascii(cut(text, 60))
