"""One table of all parts: donors, the order of lengths, the hash of the content.

Axes: N contrasts in the order of the parts, M those of the table.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_attr.facts.contrasts import Donor
from lit_attr.facts.rows import Fact, Read, Rejected
from lit_attr.facts.table.columns import (
    BATCH_ROWS,
    CONTRAST_SCHEMA,
    concatenate,
    decode_facts,
    donor_columns,
    either,
    encode_facts,
    joined,
)
from lit_attr.facts.table.donors import (
    HASHES,
    DonorFeatures,
    PossibleDonors,
    choose_donors,
    find_named_donors,
    reasons_without,
)
from lit_attr.facts.table.parts import FACTS_A_PART, ORDER_BYTES, Making, Part, make_parts

TABLE_SCHEMA = pa.schema([*CONTRAST_SCHEMA, pa.field("place", pa.int32())])


class Built(NamedTuple):
    """What is known of a table beside its contrasts.

    Attributes:
        content: A hash of what the contrasts ask of the model, in the order of the source.
        rejected: Why there are not more.
        spaces: How many facts have a space before an answer that their rows do not have.
        order_M: The contrasts whose tokens differ, as places in the source, in the random order of the seed.
    """

    content: str
    rejected: list[Rejected]
    spaces: int
    order_M: NDArray[np.int32]


def build(
    reads: Iterable[Read],
    making: Making,
    write: Callable[[pa.RecordBatch], None],
    *,
    folder: Path | None = None,
    workers: int = 1,
    facts_a_part: int = FACTS_A_PART,
) -> Built:
    """Makes a table: the contrasts with the most tokens first, otherwise in the order of the source.

    Args:
        reads: The rows of the source.
        making: How contrasts are made.
        write: Takes the record batches of the table, of `TABLE_SCHEMA`.
        folder: Where parts are kept; None to keep them in memory.
        workers: How many processes tokenise.
        facts_a_part: How many facts are tokenised together.

    Raises:
        ArgumentError: See `Reading.each` and `make_parts`.
        OSError: A part cannot be written.
    """
    sorting = _Sorting(making)
    chunks = _chunked(sorting.kept(reads), facts_a_part)
    parts = [*make_parts(chunks, making, folder, workers=workers)]
    others: list[Part] = []
    if making.has_donors:
        chunks = _chunked(sorting.others(), facts_a_part)
        others = [*make_parts(chunks, making, folder, prefix="other", workers=workers)]
    columns = _Columns([*parts, *others], making, sum(batch.num_rows for part in parts for batch in part.batches))
    rejected = [*sorting.rejected, *chain.from_iterable(part.rejected for part in parts)]
    donors = _Donors(columns, making) if making.has_donors else None
    if donors is not None:
        rejected += donors.rejected
    kept_N = np.arange(columns.own) if donors is None else np.flatnonzero(donors.of_N[: columns.own] >= 0)
    # From the order of the source to that of the parts.
    kept_M = kept_N[np.argsort(columns.places_N[kept_N], kind="stable")]
    places_N = np.full(len(columns.lengths_N), -1, dtype=np.int32)
    places_N[kept_M] = np.arange(len(kept_M))
    rows_M = kept_M[np.argsort(-columns.lengths_N[kept_M], kind="stable")]
    for begin in range(0, len(rows_M), BATCH_ROWS):
        rows = rows_M[begin : begin + BATCH_ROWS]
        write(_with_places(columns.gather(rows), places_N[rows], [] if donors is None else donors.at(rows)))
    differing_M = kept_M[columns.differ_N[kept_M]]
    orders_M = columns.hashes("order", ORDER_BYTES, columns.own)[differing_M]
    with_spaces = columns.rows_N[kept_M][columns.spaces_N[kept_M]]
    return Built(
        _content(columns, kept_M, donors),
        sorted(rejected),
        len(np.unique(with_spaces)),
        places_N[differing_M[np.argsort(orders_M, kind="stable")]],
    )


class _Sorting:
    """Sorts rows into facts of the run, possible donors, and refused rows."""

    def __init__(self, making: Making) -> None:
        self.rejected: list[Rejected] = []
        self._possible = PossibleDonors(by_name=making.by_name) if making.has_donors else None
        self._pool: list[pa.RecordBatch] = []

    def kept(self, reads: Iterable[Read]) -> Iterator[Read]:
        """The facts of the run."""
        pool: list[Fact] = []
        for read in reads:
            is_kept = read.is_kept and read.rejected is None
            if read.rejected is not None:
                self.rejected.append(read.rejected)
            if self._possible is not None and read.fact is not None:
                if is_kept:
                    self._possible.add(read.fact, read.donor_id)
                elif read.is_in_pool:
                    pool.append(read.fact)
                if len(pool) == BATCH_ROWS:
                    self._pool.append(encode_facts(pool))
                    pool.clear()
            if is_kept:
                yield read
        if pool:
            self._pool.append(encode_facts(pool))

    def others(self) -> Iterator[Read]:
        """The facts that the run lacks and that may be donors. Needs all of the run."""
        for batch in self._pool:
            for fact in decode_facts(batch):
                if self._possible is not None and self._possible.has(fact):
                    yield Read(fact, is_kept=False)


class _Columns:
    """Columns of parts as arrays, and record batches of any of their rows.

    Attributes:
        own: How many contrasts are of the run; those of possible donors follow.
        places_N: The place of each in the order of the source.
        lengths_N: The number of tokens.
        rows_N: The number of the row.
        differ_N: Whether the two tokens differ.
        spaces_N: Whether a space was added before an answer.
    """

    def __init__(self, parts: Sequence[Part], making: Making, own: int) -> None:
        self.own = own
        self._making = making
        self.batches = [batch for part in parts for batch in part.batches]
        sizes = [batch.num_rows for batch in self.batches]
        self._starts = [0, *accumulate(sizes)]
        in_part = [sum(batch.num_rows for batch in part.batches) for part in parts]
        before = np.repeat(np.concatenate([[0], np.cumsum(in_part)[:-1]]) if parts else [], in_part).astype(
            np.int64
        )
        self.places_N = before + self.numbers("place")
        self.rows_N = self.numbers("row")
        self.differ_N = self.numbers("true_token_id") != self.numbers("false_token_id")
        self.spaces_N = joined([batch["has_space"].to_numpy(zero_copy_only=False) for batch in self.batches], bool)
        self.lengths_N = joined(
            [np.diff(batch["token_ids"].offsets.to_numpy()) for batch in self.batches], np.int64
        )

    def numbers(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers."""
        return joined([batch[name].to_numpy() for batch in self.batches], np.int64)

    def hashes(self, name: str, size: int, count: int | None = None) -> NDArray[np.bytes_]:
        """A column of hashes of some bytes, of the first `count` contrasts."""
        content = b"".join(fixed_bytes(batch[name], size) for batch in self.batches)
        hashes_N: NDArray[np.bytes_] = np.frombuffer(content, dtype=f"S{size}")[:count]
        return hashes_N

    def values(self, name: str, rows: Iterable[int]) -> Iterator[Any]:
        """The values of a column in some rows that are near each other."""
        held: tuple[int, list[Any]] = -1, []
        for row in rows:
            at, local = self.locate(row)
            if at != held[0]:
                held = at, self.batches[at][name].to_pylist()
            yield held[1][local]

    def locate(self, row: int) -> tuple[int, int]:
        """The record batch of a row, and its place in it."""
        at = bisect_right(self._starts, row) - 1
        return at, row - self._starts[at]

    def gather(self, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """A record batch of some rows, at least one, in their order."""
        at = np.searchsorted(self._starts, rows, "right") - 1
        cuts = np.flatnonzero(np.diff(at)) + 1
        pieces = []
        for some, batch_at in zip(np.split(rows, cuts), at[np.append(0, cuts)], strict=True):
            local = some - self._starts[batch_at]
            batch = self.batches[batch_at].select(CONTRAST_SCHEMA.names)
            is_run = local[-1] - local[0] + 1 == len(local) and (np.diff(local) == 1).all()
            pieces.append(batch.slice(local[0], len(local)) if is_run else batch.take(pa.array(local)))
        return concatenate(pieces)


class _Donors:
    """The donors of a run's contrasts.

    Attributes:
        of_N: For each contrast of the run the first contrast of its donor, -1 where it has none.
        rejected: The facts without a donor, with the reasons.
    """

    def __init__(self, columns: _Columns, making: Making) -> None:
        self._ids = [_ids(batch) for batch in columns.batches]
        self._columns = columns
        source_N = np.argsort(columns.places_N, kind="stable")
        rows_N = columns.rows_N[source_N]
        is_first_N = np.append(True, rows_N[1:] != rows_N[:-1]) if len(rows_N) else np.zeros(0, dtype=bool)
        firsts_P = source_N[is_first_N]
        self._steps_N = columns.numbers("step")
        starts_P, ends_P = columns.numbers("subject_begin")[firsts_P], columns.numbers("subject_end")[firsts_P]
        prompts_P = (columns.lengths_N - self._steps_N)[firsts_P]
        counts_P3 = np.column_stack([starts_P, ends_P - starts_P, prompts_P - ends_P])
        own = int((firsts_P < columns.own).sum())
        reasons: dict[int, str] = {}
        if making.by_name:
            ids = [self._id(row) for row in firsts_P.tolist()]
            names = [_name(columns, row) for row in firsts_P[:own].tolist()] + ids[own:]
            donors_P, reasons = find_named_donors(ids, names, counts_P3)
        else:
            sizes = HASHES.items()
            hashes = {name: columns.hashes(f"{name}_hash", size)[firsts_P].tobytes() for name, size in sizes}
            features = DonorFeatures.of_columns(hashes, counts_P3)
            donors_P = choose_donors(features)
            reasons = reasons_without(features, np.flatnonzero(donors_P[:own] < 0))
        facts_N = np.empty(len(rows_N), dtype=np.int64)
        facts_N[source_N] = np.cumsum(is_first_N) - 1
        donors_N = donors_P[facts_N]
        self.of_N: NDArray[np.int64] = np.where(donors_N < 0, -1, firsts_P[donors_N])
        self.rejected = [
            Rejected(int(columns.rows_N[firsts_P[place]]), self._id(int(firsts_P[place])), reason)
            for place, reason in reasons.items()
            if place < own
        ]

    def at(self, rows: NDArray[np.int64]) -> list[Donor]:
        """The donors of some contrasts that have one."""
        return [self.of(row) for row in rows.tolist()]

    def of(self, row: int) -> Donor:
        """The donor of a contrast that has one."""
        donor, step = int(self.of_N[row]), int(self._steps_N[row])
        own = self._tokens(row)
        prompt = self._tokens(donor)[: int(self._columns.lengths_N[donor] - self._steps_N[donor])]
        return Donor(self._id(donor), (*prompt, *own[len(own) - step :]))

    def _tokens(self, row: int) -> list[int]:
        at, local = self._columns.locate(row)
        tokens: list[int] = self._columns.batches[at]["token_ids"][local].as_py()
        return tokens

    def _id(self, row: int) -> int | str:
        at, local = self._columns.locate(row)
        return self._ids[at][local]


def fixed_bytes(column: pa.Array, size: int) -> bytes:
    """The bytes of a column of values that all have the same number of them."""
    content: bytes = column.buffers()[1][column.offset * size : (column.offset + len(column)) * size].to_pybytes()
    return content


def _ids(batch: pa.RecordBatch) -> list[int | str]:
    numbers, texts = batch["id_number"].to_pylist(), batch["id_text"].to_pylist()
    return [*map(either, numbers, texts)]


def _name(columns: _Columns, row: int) -> int | str:
    at, local = columns.locate(row)
    number, text = (columns.batches[at][name][local].as_py() for name in ("named_number", "named_text"))
    return either(number, text)


def _chunked(reads: Iterable[Read], size: int) -> Iterator[list[Read]]:
    chunk: list[Read] = []
    for read in reads:
        chunk.append(read)
        if len(chunk) == size:
            yield chunk
            # Another list: the process that makes the part has this one.
            chunk = []
    if chunk:
        yield chunk


def _with_places(batch: pa.RecordBatch, places: NDArray[np.int32], donors: Sequence[Donor]) -> pa.RecordBatch:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if donors:
        names = ("donor_number", "donor_text", "donor_token_ids")
        for name, values in zip(names, donor_columns(donors), strict=True):
            columns[name] = pa.array(values, CONTRAST_SCHEMA.field(name).type)
    columns["place"] = pa.array(places, pa.int32())
    return pa.RecordBatch.from_arrays([*columns.values()], schema=TABLE_SCHEMA)


def _content(columns: _Columns, kept_M: NDArray[np.int64], donors: _Donors | None) -> str:
    digest = hashlib.sha256()
    for begin in range(0, len(kept_M), FACTS_A_PART):
        some = kept_M[begin : begin + FACTS_A_PART]
        # In the order of the parts they are near each other.
        order = np.argsort(some, kind="stable")
        contents: list[bytes] = [b""] * len(some)
        for at, content in zip(order.tolist(), columns.values("content", some[order].tolist()), strict=True):
            contents[at] = content
        for row, content in zip(some.tolist(), contents, strict=True):
            digest.update(content)
            if donors is not None:
                digest.update(repr(donors.of(row)).encode())
    return digest.hexdigest()[:16]
