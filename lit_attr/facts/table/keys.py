"""Hashes of contrasts' keys: millions of keys in arrays, where Python objects would take ten times the memory.

Axes: N and M keys; 2 the halves of a hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.contrasts import ContrastKey

Hashes = NDArray[np.uint64]
KEY_BYTES = 16


def hash_key(key: ContrastKey) -> bytes:
    """A hash of a contrast's key, of 16 bytes."""
    # JSON keeps the ids 1 and "1" apart.
    return hashlib.sha256(json.dumps([*key]).encode()).digest()[:KEY_BYTES]


def hash_keys(keys: Iterable[ContrastKey]) -> Hashes:
    """The hashes of several keys: uint64 [N, 2]."""
    return hashes_in(b"".join(map(hash_key, keys)))


def hashes_in(content: bytes | memoryview) -> Hashes:
    """Hashes of 16 bytes, one after another, as uint64 [N, 2]."""
    return np.frombuffer(content, dtype="<u8").reshape(-1, 2)


class KeyIndex:
    """Finds keys by their hashes.

    Args:
        hashes_N2: The hashes.
    """

    def __init__(self, hashes_N2: Hashes) -> None:
        self._places_N = np.lexsort((hashes_N2[:, 1], hashes_N2[:, 0])).astype(np.int32)
        self._sorted_N2 = hashes_N2[self._places_N]
        # How many have the same first half: one, but for a chance of 1 in 30 million in a million keys.
        first_N = self._sorted_N2[:, 0]
        starts = np.flatnonzero(np.append(True, first_N[1:] != first_N[:-1]))
        self._most = int(np.diff(starts, append=len(hashes_N2)).max(initial=1))

    def __len__(self) -> int:
        return len(self._places_N)

    @property
    def hashes_N2(self) -> Hashes:
        """The hashes in their first order."""
        hashes_N2 = np.empty_like(self._sorted_N2)
        hashes_N2[self._places_N] = self._sorted_N2
        return hashes_N2

    def find(self, hashes_M2: Hashes) -> NDArray[np.int64]:
        """The place of each hash, -1 where it is not there."""
        found_M: NDArray[np.int64] = np.full(len(hashes_M2), -1, dtype=np.int64)
        if not len(self):
            return found_M
        first_M = np.searchsorted(self._sorted_N2[:, 0], hashes_M2[:, 0])
        for step in range(self._most):
            at_M = np.minimum(first_M + step, len(self) - 1)
            is_same_M = (self._sorted_N2[at_M] == hashes_M2).all(axis=1)
            found_M[is_same_M] = self._places_N[at_M[is_same_M]]
        return found_M


class GrowingKeys:
    """Keys that are added a few at a time, each with a number such as that of its file."""

    def __init__(self) -> None:
        # Of sizes that at least double from the last to the first.
        self._parts: list[tuple[KeyIndex, NDArray[np.int32]]] = []

    def add(self, hashes_M2: Hashes, number: int = 0) -> NDArray[np.int64]:
        """Adds keys.

        Args:
            hashes_M2: Their hashes.
            number: The number of each.

        Returns:
            The number of each key that was there before, -1 for a new one. One that is among the added ones twice
            has the number that it is added with.
        """
        numbers_M: NDArray[np.int64] = np.full(len(hashes_M2), -1, dtype=np.int64)
        if not len(hashes_M2):
            return numbers_M
        for index, values_N in self._parts:
            found_M = index.find(hashes_M2)
            numbers_M = np.where(found_M >= 0, values_N[found_M], numbers_M)
        added = KeyIndex(hashes_M2)
        numbers_M = np.where(
            (added.find(hashes_M2) != np.arange(len(hashes_M2))) & (numbers_M < 0), number, numbers_M
        )
        self._parts.append((added, np.full(len(hashes_M2), number, dtype=np.int32)))
        while len(self._parts) > 1 and 2 * len(self._parts[-1][0]) > len(self._parts[-2][0]):
            (first, first_values), (second, second_values) = self._parts[-2:]
            hashes_N2 = np.concatenate([first.hashes_N2, second.hashes_N2])
            self._parts[-2:] = [(KeyIndex(hashes_N2), np.concatenate([first_values, second_values]))]
        return numbers_M
