"""The items of a run: the pilot first, whole again after any interruption, and apart from the judges."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.facts.contrasts import Contrast, ContrastKey
from lit_attr.facts.table.contrast_table import ContrastTable, Rows
from lit_attr.records.scored import Entry, Scored
from lit_attr.records.state import RunState
from lit_attr.sampling.work import Work, comparisons_work, pilot_rows, pilot_work, scores_work


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    return sample_contrasts[:8]


@pytest.fixture
def table(contrasts: list[Contrast]) -> ContrastTable:
    return ContrastTable.of(contrasts)


def keys_of(table: ContrastTable, rows: Rows) -> list[ContrastKey]:
    return [contrast.key for contrast in table.at(rows)]


def contrasts_of(table: ContrastTable, work: list[Work]) -> list[list[Contrast]]:
    return [table.at(item.rows) for item in work]


def test_the_pilot_is_the_first_of_the_order_and_does_not_depend_on_what_is_refused(table: ContrastTable):
    order = [contrast.key for contrast in table]
    assert keys_of(table, pilot_rows(table, table.rows_N, 3, RunState())) == order[:3]
    # Refused while the model ran, and killed before its exact effects were written.
    refused = RunState(refused=frozenset(order[:1]))
    assert keys_of(table, pilot_rows(table, table.rows_N, 3, refused)) == order[:3]
    assert keys_of(table, pilot_rows(table, table.rows_N, 20, RunState())) == order


def test_a_begun_pilot_is_kept_and_one_that_was_fitted_to_gets_no_others(table: ContrastTable):
    order = [contrast.key for contrast in table]
    begun = frozenset([order[4], order[6]])
    kept = [order[4], order[6]]
    found = pilot_rows(table, table.rows_N, 4, RunState(pilots=begun))
    assert keys_of(table, found) == [*kept, order[0], order[1]]
    fitted = RunState(pilots=begun, has_error_model=True)
    assert keys_of(table, pilot_rows(table, table.rows_N, 4, fitted)) == kept


def test_the_pilots_contrasts_lack_scores_or_effects_until_both_are_there(
    table: ContrastTable, contrasts: list[Contrast]
):
    keys = [contrast.key for contrast in contrasts]
    state = RunState(
        # 0 is complete, 1 lacks scores, 2 lacks effects, 3 is refused with effects, 4 has those of a judge.
        done=Scored(Entry(keys[at], 0, "a.json") for at in (0, 2, 4)),
        refused=frozenset([keys[3]]),
        exact={keys[0]: True, keys[1]: True, keys[3]: False, keys[4]: True},
        pilots=frozenset([keys[0], keys[1], keys[2], keys[3]]),
    )
    work = pilot_work(table, table.rows_N[:6], state, 2)
    assert contrasts_of(table, work) == [[contrasts[place]] for place in (1, 2, 4, 5)]
    assert all(item.is_pilot for item in work)
    # The first, third, ... are of the first process.
    assert [item.comparison for item in work] == [(1, 2), (1, 2), (2, 2), (2, 2)]


def test_batches_keep_their_width_and_the_pilots_contrasts(contrasts: list[Contrast]):
    first = contrasts[0]
    longest = first._replace(
        **{name: values * 2 for name, values in (("token_ids", first.token_ids), ("tokens", first.tokens))}
    )
    table = ContrastTable.of([longest, *contrasts[1:]])
    is_done, is_pilot = np.zeros((2, 8), dtype=bool)
    is_done[table.rows_N[[0, 1, 3]]] = True
    is_pilot[table.rows_N[[1, 4]]] = True
    batches = [table.rows_N[places] for places in ([0, 1, 2], [3], [4])]
    (work,) = scores_work(table, batches, is_done, is_pilot)
    assert table.at(work.rows) == contrasts[1:3]
    assert work.width == len(longest.token_ids) > max(len(contrast.token_ids) for contrast in contrasts)


def test_the_pilot_never_judges(table: ContrastTable, contrasts: list[Contrast]):
    order = [contrast.key for contrast in contrasts]
    # 2 is of an earlier pilot, 0 of this one.
    state = RunState(pilots=frozenset([order[2]]), exact={order[1]: True, order[3]: False})
    state.pilot = [contrasts[0]]
    work = comparisons_work(table, table.rows_N, 3, state, 1)
    assert contrasts_of(table, work) == [[contrasts[4]], [contrasts[5]]]
    assert [*state.spares] == [(6, contrasts[6]), (7, contrasts[7])]
    assert comparisons_work(table, table.rows_N, 0, state, 1) == []
