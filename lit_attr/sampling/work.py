"""The work of a run, one item a batch: the pilot's exact effects, the scores, and the sample's exact effects.

Axes: N rows of the run's table of contrasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray

from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.table.contrast_table import ContrastTable, Rows
from lit_attr.records.state import RunState

MAX_TOKENS_CPU = 1024
MAX_TOKENS_GPU = 4096
# The logits of a row, over the whole vocabulary, take about as much memory as this many of its tokens.
TOKENS_PER_ROW = 6


class Work(NamedTuple):
    """The contrasts of one batch.

    Attributes:
        rows: Their rows in the run's table.
        comparison: Set where the exact effects of one contrast are computed: which comparison of its process this
            is, from 1, and of how many.
        is_pilot: Whether the contrast is of the pilot.
        width: The least number of tokens that the batch is padded to.
    """

    rows: Rows
    comparison: tuple[int, int] | None = None
    is_pilot: bool = False
    width: int = 0


class Spares(Sequence[tuple[int, Contrast]]):
    """Contrasts with their places in the run's random order, made when they are asked for.

    Args:
        table: The contrasts of the run.
        places: Places in the order.
        rows: The rows of the contrasts there.
    """

    def __init__(self, table: ContrastTable, places: NDArray[np.int64], rows: Rows) -> None:
        self._table, self._places, self._rows = table, places, rows

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> tuple[int, Contrast]: ...

    @overload
    def __getitem__(self, at: slice) -> Spares: ...

    def __getitem__(self, at: int | slice) -> tuple[int, Contrast] | Spares:
        if isinstance(at, slice):
            return Spares(self._table, self._places[at], self._rows[at])
        return int(self._places[at]), self._table.at(self._rows[[at]])[0]


def pilot_rows(table: ContrastTable, order: Rows, count: int, state: RunState) -> Rows:
    """The contrasts of an adaptive run's pilot.

    Args:
        table: The contrasts of the run.
        order: Their rows in the run's random order.
        count: How many contrasts the pilot has.
        state: The state of the run.
    """
    # An interrupted run that is extended keeps the pilot that it has begun.
    is_begun_N = table.mask(state.pilots)[order]
    if state.has_error_model:
        # An error model never changes, also when the run is extended.
        return order[is_begun_N]
    return np.concatenate([order[is_begun_N], order[~is_begun_N]])[:count]


def pilot_work(table: ContrastTable, pilot: Rows, state: RunState, processes: int) -> list[Work]:
    """The contrasts of the pilot that lack scores or exact effects.

    Args:
        table: The contrasts of the run.
        pilot: The rows of the pilot's.
        state: The state of the run.
        processes: How many processes the run has.
    """
    complete = {key for key in state.exact if key in state.pilots and state.is_done(key)}
    return _one_by_one(pilot[~table.mask(complete)[pilot]], processes, is_pilot=True)


def scores_work(
    table: ContrastTable, batches: Sequence[Rows], is_done_N: NDArray[np.bool_], is_pilot_N: NDArray[np.bool_]
) -> list[Work]:
    """The batches of a run with the contrasts that are not done.

    The pilot's contrasts stay in their batches: the last digits of the others depend on the rows and the width
    that a batch has, and are those of a run without a pilot.

    Args:
        table: The contrasts of the run.
        batches: The rows of each batch of all contrasts, so that a resumed run has those of an uninterrupted one.
        is_done_N: Which rows are done.
        is_pilot_N: Which are of the pilot.
    """
    is_left_N = ~is_done_N | is_pilot_N
    found = []
    for rows in batches:
        left = rows[is_left_N[rows]]
        if not is_pilot_N[left].all():
            found.append(Work(left, width=int(table.lengths_N[rows].max())))
    return found


def comparisons_work(
    table: ContrastTable, order: Rows, verify: int, state: RunState | None, processes: int
) -> list[Work]:
    """The contrasts of the run's sample that have no exact effects yet. Sets the state's spares.

    Args:
        table: The contrasts of the run.
        order: Their rows in the run's random order.
        verify: How many contrasts the sample has. The pilot's are not in it.
        state: The state of the run; None where nothing is written.
        processes: How many processes the run has.
    """
    if not verify:
        return []
    known = RunState() if state is None else state
    pilot = {*known.pilots, *(contrast.key for contrast in known.pilot)}
    # A contrast that came out not finite is replaced by the next one of the order.
    broken = {key for key, is_finite in known.exact.items() if not is_finite}
    places = np.flatnonzero(~table.mask({*pilot, *broken, *known.refused})[order])
    if state is not None:
        state.spares = Spares(table, places[verify:], order[places[verify:]])
    sample = order[places[:verify]]
    return _one_by_one(sample[~table.mask(known.exact)[sample]], processes)


def bounds_of_batches(
    max_rows: int | None, max_tokens: int | None, device: torch.device | None
) -> tuple[int | None, int | None]:
    """Maximum rows and tokens of a batch: those that are given, or without any those for the device."""
    if max_tokens is not None or max_rows is not None:
        return max_rows, max_tokens
    most = MAX_TOKENS_CPU if device is None or device.type == "cpu" else MAX_TOKENS_GPU
    return most // TOKENS_PER_ROW, most


def collate_work(table: ContrastTable, places_N: Rows, work: Work) -> ContrastBatch:
    """The batch of an item of work.

    Args:
        table: The contrasts of the run.
        places_N: The place of each row in the run's random order, -1 where it has none.
        work: The item.
    """
    places = [None if place < 0 else place for place in places_N[work.rows].tolist()]
    return collate_contrasts(table.at(work.rows), places, work.comparison, work.is_pilot, work.width)


def other_facts(table: ContrastTable, state: RunState) -> Rows:
    """The row of the first contrast of the source that was another one when it was written."""
    others = np.flatnonzero(state.done.others(table.keys_N2, table.digests_N)).astype(np.int32)
    return others[np.argsort(table.places_N[others])[:1]]


def _one_by_one(rows: Rows, processes: int, *, is_pilot: bool = False) -> list[Work]:
    """One contrast a batch, numbered for each process."""
    counts = [len(range(rank, len(rows), processes)) for rank in range(processes)]
    return [
        Work(rows[at : at + 1], (at // processes + 1, counts[at % processes]), is_pilot) for at in range(len(rows))
    ]
