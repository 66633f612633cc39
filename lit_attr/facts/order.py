"""The random order of a run's contrasts, which depends on a seed and on nothing else of the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from lit_attr.facts.contrasts import ContrastKey


def order_key(key: ContrastKey, seed: int) -> bytes:
    """Hashes a seed and a contrast's key; sorting by the hash gives the random order.

    A contrast keeps its hash whatever other contrasts the run has, so two runs over overlapping facts order those
    that they share alike.
    """
    # JSON keeps the ids 1 and "1" apart.
    return hashlib.sha256(json.dumps([seed, *key]).encode()).digest()


def random_order(keys: Iterable[ContrastKey], seed: int) -> list[ContrastKey]:
    """Puts contrasts into a random order that is the same for the same keys, in whatever order they come."""
    return sorted(keys, key=lambda key: order_key(key, seed))
