"""Rows that have been read, kept in a tenth of the memory that they take as objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from lit_attr.facts.rows import Fact, Read, Rejected
from lit_attr.facts.table.columns import BATCH_ROWS, decode_facts, encode_facts

_Rest = tuple[bool, bool, "int | str | None"]


class StoredReads:
    """The rows of a source that cannot be read again, or not fast.

    Args:
        reads: The rows.

    Attributes:
        fingerprint: A hash of them.
    """

    def __init__(self, reads: Iterable[Read]) -> None:
        self._batches: list[tuple[pa.RecordBatch, list[_Rest]]] = []
        self._rejected: list[Rejected] = []
        digest = hashlib.sha256()
        facts: list[Fact] = []
        rest: list[_Rest] = []
        for read in reads:
            digest.update(repr(tuple(read)).encode("utf-8", "backslashreplace"))
            if read.rejected is not None:
                self._rejected.append(read.rejected)
            if read.fact is not None and (read.rejected is None or read.is_in_pool):
                facts.append(read.fact)
                rest.append((read.is_kept and read.rejected is None, read.is_in_pool, read.donor_id))
            if len(facts) == BATCH_ROWS:
                self._batches.append((encode_facts(facts), rest))
                facts, rest = [], []
        if facts:
            self._batches.append((encode_facts(facts), rest))
        self.fingerprint = digest.hexdigest()[:32]

    def __len__(self) -> int:
        """The number of facts."""
        return sum(len(rest) for _, rest in self._batches)

    def __iter__(self) -> Iterator[Read]:
        for rejected in self._rejected:
            yield Read(None, rejected)
        for batch, rest in self._batches:
            for fact, (is_kept, is_in_pool, donor_id) in zip(decode_facts(batch), rest, strict=True):
                yield Read(fact, None, is_kept, is_in_pool, donor_id)
