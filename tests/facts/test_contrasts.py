"""The prompt of a contrast, and the random order of contrasts."""

from __future__ import annotations

import hashlib

from lit_attr.facts.contrasts import order_key, random_order

KEYS = [(row if row % 3 else f"row {row}", row % 2) for row in range(200)]


def test_the_hash_is_that_of_the_seed_and_the_key():
    assert order_key((7, 0), seed=3) == hashlib.sha256(b"[3, 7, 0]").digest()
    assert order_key(("P36 — Spain", 1), seed=0) == hashlib.sha256(b'[0, "P36 \\u2014 Spain", 1]').digest()


def test_ids_that_look_alike_have_hashes_of_their_own():
    assert len({order_key(key, 0) for key in ((1, 0), ("1", 0), (1, 1), ("1, 0", 0), (10, 0))}) == 5


def test_the_order_depends_on_the_seed_and_not_on_the_order_of_the_keys():
    order = random_order(KEYS, seed=0)
    assert sorted(order, key=KEYS.index) == KEYS
    assert random_order(reversed(KEYS), seed=0) == order != KEYS
    assert random_order(KEYS, seed=1) != order


def test_other_contrasts_do_not_change_the_order_of_those_there_are():
    order = random_order(KEYS, seed=0)
    fewer = KEYS[::4]
    assert random_order(fewer, seed=0) == [key for key in order if key in fewer]
