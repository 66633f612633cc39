"""Facts by what a user types as their id."""

from __future__ import annotations

import pytest

from lit_attr.evaluation.index.identities import close_ids, keys_of

KEYS = [(12, 1), ("12", 0), ("a b", 0), (12, 0), (-3, 0), ("null", 0)]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("12", [(12, 0), (12, 1)]),
        ('"12"', [("12", 0)]),
        ("a b", [("a b", 0)]),
        ('"a b"', [("a b", 0)]),
        ("-3", [(-3, 0)]),
        ("null", [("null", 0)]),
        ("012", []),
        ("", []),
    ],
)
def test_an_id_is_found_as_it_is_typed(typed: str, found: list[tuple[int | str, int]]):
    assert keys_of(KEYS, typed) == found


def test_close_ids():
    assert close_ids([1, 5, 9, 70, 5], "6") == ["1", "5", "9"]
    assert close_ids([-4, 2, 100], "-5") == ["-4", "2", "100"]
    assert close_ids(["Q12-P36", "Q13-P36", "zzz", 7], "Q14-P36") == ["Q13-P36", "Q12-P36"]
    assert close_ids(["abc"], "5") == []
    assert close_ids([], "5") == []
