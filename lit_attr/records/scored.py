"""The contrasts that are on disk: what each was, and in which file it is, in a few bytes each.

Axes: N contrasts on disk, M contrasts that are looked up; 2 the halves of a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.table.keys import Hashes, KeyIndex, hash_keys

# How many keys are in memory as Python objects.
AT_ONCE = 65_536


class Entry(NamedTuple):
    """A contrast on disk.

    Attributes:
        key: Its key.
        digest: What it asks, see `digest_contrast`.
        file: The name of its file.
    """

    key: ContrastKey
    digest: int
    file: str


class Scored:
    """The contrasts whose scores are on disk. It can be sent to other processes.

    Args:
        entries: The contrasts.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        hashes: list[Hashes] = []
        digests, numbers = array("Q"), array("i")
        names: dict[str, int] = {}
        keys: list[ContrastKey] = []
        for key, digest, file in entries:
            keys.append(key)
            digests.append(digest)
            numbers.append(names.setdefault(file, len(names)))
            if len(keys) == AT_ONCE:
                hashes.append(hash_keys(keys))
                keys.clear()
        self._index = KeyIndex(np.concatenate([*hashes, hash_keys(keys)]))
        self._digests_N = np.array(digests, dtype=np.uint64)
        self._numbers_N = np.array(numbers, dtype=np.int32)
        self._names = [*names]

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: ContrastKey) -> bool:
        return self._place(key) >= 0

    def digest(self, key: ContrastKey) -> int | None:
        """What a contrast on disk asks; None where it is not there."""
        place = self._place(key)
        return int(self._digests_N[place]) if place >= 0 else None

    def file(self, key: ContrastKey) -> str | None:
        """The name of the file of a contrast; None where it is not there."""
        place = self._place(key)
        return self._names[self._numbers_N[place]] if place >= 0 else None

    def mask(self, keys_M2: Hashes) -> NDArray[np.bool_]:
        """Which of some contrasts are there."""
        is_there_M: NDArray[np.bool_] = self._index.find(keys_M2) >= 0
        return is_there_M

    def others(self, keys_M2: Hashes, digests_M: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of some contrasts are there, but ask something else."""
        if not len(self):
            return np.zeros(len(keys_M2), dtype=np.bool_)
        places_M = self._index.find(keys_M2)
        others_M: NDArray[np.bool_] = (places_M >= 0) & (self._digests_N[places_M] != digests_M)
        return others_M

    def _place(self, key: ContrastKey) -> int:
        return int(self._index.find(hash_keys([key]))[0]) if len(self) else -1
