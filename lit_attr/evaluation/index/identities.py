"""Facts by what a user types as their id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_attr.facts.contrasts import ContrastKey

CLOSE = 3


def keys_of(keys: Iterable[ContrastKey], typed: str) -> list[ContrastKey]:
    """The contrasts of the fact with this id, by step.

    An id may be a number or a text. Where a run has both the number 1 and the text `1`, `1` is the number and
    `"1"` the text.

    Args:
        keys: The contrasts of a run.
        typed: The id.
    """
    named = [key for key in keys if typed in (str(key[0]), json.dumps(key[0]))]
    exact = [key for key in named if json.dumps(key[0]) == typed]
    return sorted(exact or named, key=lambda key: key[1])


def close_ids(ids: Iterable[int | str], typed: str) -> list[str]:
    """The ids that are closest to one that a run does not have: the nearest numbers, or texts with few changes."""
    known = [*dict.fromkeys(ids)]
    numbers: Sequence[int] = [each for each in known if isinstance(each, int)]
    if numbers and typed.removeprefix("-").isdecimal():
        nearest = sorted(numbers, key=lambda each: (abs(each - int(typed)), each))[:CLOSE]
        return [str(each) for each in sorted(nearest)]
    return get_close_matches(typed, [str(each) for each in known if isinstance(each, str)], CLOSE)
