"""Hashes of keys: found among many, added a few at a time, and told apart by type."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.table.keys import GrowingKeys, KeyIndex, hash_key, hash_keys

KEYS: list[ContrastKey] = [(each, step) for each in (3, "3", "é", 2**62, -1, 0) for step in (0, 1)]


def test_numbers_and_texts_have_other_hashes():
    assert len({hash_key(key) for key in KEYS}) == len(KEYS)
    assert hash_keys(KEYS).shape == (len(KEYS), 2)
    assert hash_keys([]).shape == (0, 2)


def test_finds_the_place_of_each_key():
    index = KeyIndex(hash_keys(KEYS))
    wanted = [KEYS[7], ("absent", 0), KEYS[0], KEYS[-1]]
    assert index.find(hash_keys(wanted)).tolist() == [7, -1, 0, len(KEYS) - 1]
    assert KeyIndex(hash_keys([])).find(hash_keys(wanted)).tolist() == [-1] * 4
    np.testing.assert_array_equal(index.hashes_N2, hash_keys(KEYS))


def test_hashes_that_share_their_first_half_are_kept_apart():
    hashes_N2 = np.array([[5, 1], [0, 7], [5, 3], [0, 2], [5, 2]], dtype=np.uint64)
    index = KeyIndex(hashes_N2)
    assert index.find(hashes_N2).tolist() == [0, 1, 2, 3, 4]
    assert index.find(np.array([[5, 9], [4, 1], [6, 1]], dtype=np.uint64)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_keys_that_were_added_before_give_their_number(size: int):
    added = GrowingKeys()
    assert not len(added.add(hash_keys([])))
    keys: list[ContrastKey] = [(each, 0) for each in range(50)]
    for number, begin in enumerate(range(0, 50, size)):
        assert set(added.add(hash_keys(keys[begin : begin + size]), number).tolist()) == {-1}
    assert added.add(hash_keys([(11, 0), (11, 1)]), 99).tolist() == [11 // size, -1]
    # One of two in the same call is the first.
    assert sorted(added.add(hash_keys([("new", 0), ("new", 0)]), 5).tolist()) == [-1, 5]
