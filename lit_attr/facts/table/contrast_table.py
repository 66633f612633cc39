"""The contrasts of a run: a sequence that makes each when it is asked for.

Axes: N contrasts, as rows of the table or in the order of the source; 2 the halves of a hash.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_attr.facts.contrasts import Contrast, ContrastKey, order_key
from lit_attr.facts.table.building import TABLE_SCHEMA, fixed_bytes
from lit_attr.facts.table.columns import (
    BATCH_ROWS,
    CONTRAST_COLUMNS,
    contrast_of,
    either,
    encode_contrasts,
    joined,
)
from lit_attr.facts.table.keys import KEY_BYTES, Hashes, KeyIndex, hash_keys, hashes_in
from lit_attr.facts.table.parts import ORDER_BYTES, content_of

# Rows of a table, or places in the order of the source.
Rows = NDArray[np.int32]
_KEY = ("id_number", "id_text", "step")


class ContrastTable(Sequence[Contrast]):
    """Contrasts in the order of the source. Its rows are in the order of lengths, the longest first.

    Args:
        batches: The rows, of `TABLE_SCHEMA`.
        path: The file that they are mapped from; None where they are in memory.
        content: Their hash, see :meth:`content`; None where it is not known.
        orders: Random orders of the contrasts whose tokens differ, by seed, as places in the order of the source.

    Attributes:
        rows_N: The row of each contrast, in the order of the source.
        places_N: The place in the order of the source of each row.
        lengths_N: How many tokens each row has.
        differs_N: Whether the two tokens of each row differ.
        keys_N2: The hash of the key of each row.
        digests_N: The hash of what each row asks, see `digest_contrast`.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        *,
        path: Path | None = None,
        content: str | None = None,
        orders: dict[int, Rows] | None = None,
    ) -> None:
        self._batches = [*batches]
        self._path = path
        self._content = content
        self._orders = {} if orders is None else orders
        self._starts = [0, *accumulate(batch.num_rows for batch in self._batches)]
        self.places_N: Rows = joined([batch["place"].to_numpy() for batch in self._batches], np.int32)
        self.rows_N: Rows = np.empty_like(self.places_N)
        self.rows_N[self.places_N] = np.arange(len(self.places_N), dtype=np.int32)
        self.lengths_N: Rows = joined(
            [np.diff(batch["token_ids"].offsets.to_numpy()) for batch in self._batches], np.int32
        )
        tokens = [
            (batch["true_token_id"].to_numpy(), batch["false_token_id"].to_numpy()) for batch in self._batches
        ]
        self.differs_N: NDArray[np.bool_] = joined([true != false for true, false in tokens], np.bool_)
        self.keys_N2: Hashes = hashes_in(b"".join(fixed_bytes(batch["key"], KEY_BYTES) for batch in self._batches))
        self.digests_N: NDArray[np.uint64] = joined(
            [batch["digest"].to_numpy() for batch in self._batches], np.uint64
        )
        self._index: KeyIndex | None = None

    @classmethod
    def of(cls, contrasts: Sequence[Contrast]) -> ContrastTable:
        """A table in memory."""
        places = sorted(range(len(contrasts)), key=lambda place: -len(contrasts[place].token_ids))
        batches = []
        for begin in range(0, len(places), BATCH_ROWS):
            some = places[begin : begin + BATCH_ROWS]
            encoded = encode_contrasts([contrasts[place] for place in some])
            columns = [*encoded.columns, pa.array(some, pa.int32())]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=TABLE_SCHEMA))
        return cls(batches)

    @classmethod
    def mapped(cls, path: Path, content: str) -> ContrastTable:
        """A table in a file, of which only what is used is read. Random orders are kept beside it.

        Raises:
            OSError: The file cannot be read.
            pyarrow.ArrowInvalid: It is not whole.
        """
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        return cls(table.to_batches(), path=path, content=content)

    def __len__(self) -> int:
        return len(self.places_N)

    @overload
    def __getitem__(self, place: int) -> Contrast: ...

    @overload
    def __getitem__(self, place: slice) -> list[Contrast]: ...

    def __getitem__(self, place: int | slice) -> Contrast | list[Contrast]:
        if isinstance(place, slice):
            return self.at(self.rows_N[place])
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.at(self.rows_N[place : place + 1 or None])[0]

    def __iter__(self) -> Iterator[Contrast]:
        for begin in range(0, len(self), BATCH_ROWS):
            yield from self.at(self.rows_N[begin : begin + BATCH_ROWS])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(own == each for own, each in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"<{len(self)} contrasts>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A loader's worker maps the file itself.
        if self._path is not None and self._content is not None:
            return ContrastTable.mapped, (self._path, self._content)
        return _in_memory, (self._batches,)

    def at(self, rows: Rows) -> list[Contrast]:
        """The contrasts in some rows, in their order."""
        return [contrast_of(*values) for values in self._values(rows, CONTRAST_COLUMNS)]

    def content(self, count: int | None = None) -> str:
        """A hash of the first `count` contrasts of the source, or of all: what they ask of the model."""
        if count is not None and count < len(self):
            return self._hash(count)
        if self._content is None:
            self._content = self._hash(len(self))
        return self._content

    def keys(self) -> Iterator[ContrastKey]:
        """The keys of all contrasts, in the order of the source."""
        for begin in range(0, len(self), BATCH_ROWS):
            for number, text, step in self._values(self.rows_N[begin : begin + BATCH_ROWS], _KEY):
                yield either(number, text), step

    def find(self, keys: Iterable[ContrastKey]) -> Rows:
        """The rows of those keys that are there."""
        if self._index is None:
            self._index = KeyIndex(self.keys_N2)
        rows = self._index.find(hash_keys(keys))
        return rows[rows >= 0].astype(np.int32)

    def mask(self, keys: Iterable[ContrastKey]) -> NDArray[np.bool_]:
        """Which rows have one of some keys, which are few."""
        mask_N: NDArray[np.bool_] = np.zeros(len(self), dtype=np.bool_)
        mask_N[self.find(keys)] = True
        return mask_N

    def random_order(self, seed: int) -> Rows:
        """The rows whose two tokens differ, in the random order of a seed."""
        if seed not in self._orders:
            kept = None if self._path is None else read_order(self._path.parent, seed)
            if kept is None or len(kept) != self.differs_N.sum():
                kept = self._shuffled(seed)
                if self._path is not None:
                    # The cache may be another user's; then the order is worked out again in each run.
                    with suppress(OSError):
                        write_order(self._path.parent, seed, kept)
            self._orders[seed] = kept
        return self.rows_N[self._orders[seed]]

    def _shuffled(self, seed: int) -> Rows:
        hashes_N = np.frombuffer(b"".join(order_key(key, seed) for key in self.keys()), dtype=f"S{ORDER_BYTES}")
        places = np.flatnonzero(self.differs_N[self.rows_N]).astype(np.int32)
        return places[np.argsort(hashes_N[places], kind="stable")]

    def _values(self, rows: Rows, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """The values of some columns in some rows, in their order."""
        order = np.argsort(rows, kind="stable")
        found: list[tuple[Any, ...]] = [()] * len(rows)
        cuts = np.flatnonzero(np.diff(np.searchsorted(self._starts, rows[order], "right"))) + 1
        for some in np.split(order, cuts) if len(order) else []:
            at = bisect_right(self._starts, int(rows[some[0]])) - 1
            local = rows[some] - self._starts[at]
            is_run = bool((np.diff(local) == 1).all())
            columns = (self._batches[at][name] for name in names)
            if is_run:
                values = (column[int(local[0]) : int(local[-1]) + 1].to_pylist() for column in columns)
            else:
                values = (column.take(pa.array(local)).to_pylist() for column in columns)
            for place, row in zip(some.tolist(), zip(*values, strict=True), strict=True):
                found[place] = row
        return found

    def _hash(self, count: int) -> str:
        digest = hashlib.sha256()
        for begin in range(0, count, BATCH_ROWS):
            for contrast in self[begin : min(count, begin + BATCH_ROWS)]:
                digest.update(content_of(contrast))
                if contrast.donor is not None:
                    digest.update(repr(contrast.donor).encode())
        return digest.hexdigest()[:16]


def _in_memory(batches: Sequence[pa.RecordBatch]) -> ContrastTable:
    return ContrastTable(batches)


def read_order(folder: Path, seed: int) -> Rows | None:
    """A random order that is kept in the folder of a table; None where there is none that can be read."""
    try:
        order: Rows = np.load(folder / _order_name(seed), allow_pickle=False)
    except (OSError, ValueError):
        return None
    return order if order.dtype == np.int32 and order.ndim == 1 else None


def write_order(folder: Path, seed: int, order: Rows) -> None:
    """Keeps a random order in the folder of a table.

    Raises:
        OSError: It cannot be written.
    """
    temporary = folder / f".{_order_name(seed)}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            np.save(stream, order)
        temporary.replace(folder / _order_name(seed))
    finally:
        temporary.unlink(missing_ok=True)


def _order_name(seed: int) -> str:
    return f"order-{seed}.npy"
