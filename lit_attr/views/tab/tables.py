"""The table of a run's facts: which are chosen, their order, and what a row shows.

Axes: N contrasts of the run, M those that are chosen.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.contrasts import ContrastKey
from lit_attr.views.tab.index import RunIndex
from lit_attr.views.tab.queries import RequestError, TableQuery

Rows = NDArray[np.int64]
CSV_COLUMNS = (
    "id",
    "step",
    "prompt",
    "subject",
    "target_true",
    "target_false",
    "relation_id",
    "logit_diff",
    "prob_true",
    "rank_true",
    "largest_score",
    "largest_layer",
    "largest_token",
    "relative_error",
    "mean_score_of_cell",
)


def component_of(index: RunIndex, query: TableQuery) -> str:
    """The component that is asked for, or the run's first.

    Raises:
        RequestError: The run has no such component, or no contrast.
    """
    if not index.components:
        raise RequestError("the run has no contrast yet; refresh the page once it has", 404)
    component = query.component or index.components[0]
    if component not in index.components:
        raise RequestError(f"component: the run has scores of {', '.join(index.components)}", 404)
    return component


def chosen_rows(index: RunIndex, query: TableQuery, component: str) -> Rows:
    """The rows of the contrasts that are asked for, in their order.

    Raises:
        RequestError: The run has no scores of the layer.
    """
    columns = index.columns
    is_chosen_N = np.ones(len(columns.facts), dtype=np.bool_)
    if query.words:
        is_chosen_N &= _marks(all(word in text for word in query.words) for text in columns.folded)
    if query.relation is not None:
        is_chosen_N &= _marks(relation == query.relation for relation in columns.relations)
    if query.known is not None:
        is_chosen_N &= (columns.rank_true_N == 0) == query.known
    if query.preferred is not None:
        is_chosen_N &= (columns.logit_diff_N > 0) == query.preferred
    if query.checked is not None:
        is_chosen_N &= _marks(index.is_checked(fact.key) == query.checked for fact in columns.facts)
    cell_N = cell_values_N(index, query, component)
    if cell_N is not None:
        is_chosen_N &= ~np.isnan(cell_N)
    rows_M: Rows = is_chosen_N.nonzero()[0]
    if query.sort == "id":
        return rows_M[::-1] if query.descending else rows_M
    values_N: NDArray[Any] = {
        "logit_diff": columns.logit_diff_N,
        "prob_true": columns.prob_true_N,
        "rank_true": columns.rank_true_N,
        # Of either sign.
        "largest": np.abs(columns.largest[component]),
        "error": columns.error[component],
        "cell": np.abs(cell_N) if cell_N is not None else columns.logit_diff_N,
    }[query.sort]
    values_M = values_N[rows_M]
    # NaN comes last either way.
    return rows_M[np.argsort(-values_M if query.descending else values_M, kind="stable")]


def cell_values_N(index: RunIndex, query: TableQuery, component: str) -> NDArray[np.float32] | None:
    """The mean scores in the cell of the role map that is asked for; None where none is.

    Raises:
        RequestError: The run has no scores of the layer.
    """
    if query.cell is None:
        return None
    layer, role = query.cell
    if layer not in index.layers:
        raise RequestError(f"layer: the run has no scores of layer {layer}", 404)
    return index.cell_N(component, layer, role)


def table_page(index: RunIndex, query: TableQuery, page: int, size: int) -> dict[str, Any]:
    """A page of the table, in JSON types.

    Raises:
        RequestError: There is no such page, component or layer.
    """
    if not index.components and page == 1:
        return {"total": 0, "page": 1, "size": size, "rows": []}
    component = component_of(index, query)
    rows_M = chosen_rows(index, query, component)
    if page > 1 and (page - 1) * size >= len(rows_M):
        raise RequestError(f"page: there are {-(-len(rows_M) // size)} pages of {size} rows", 404)
    cell_N = cell_values_N(index, query, component)
    return {
        "total": len(rows_M),
        "page": page,
        "size": size,
        "component": component,
        "rows": [_row(index, component, row, cell_N) for row in rows_M[(page - 1) * size : page * size].tolist()],
    }


def neighbours(index: RunIndex, query: TableQuery, component: str, key: ContrastKey) -> dict[str, Any]:
    """Where a contrast stands among those asked for: its place from 1, their number, the one before and after."""
    rows = chosen_rows(index, query, component)
    places = (rows == index.columns.row_of[key]).nonzero()[0].tolist()
    if not places:
        return {"place": None, "total": len(rows), "previous": None, "next": None}
    place = places[0]
    before = rows[place - 1] if place else None
    after = rows[place + 1] if place + 1 < len(rows) else None
    return {
        "place": place + 1,
        "total": len(rows),
        "previous": _named(index, before),
        "next": _named(index, after),
    }


def table_csv(index: RunIndex, query: TableQuery) -> str:
    """All contrasts that are asked for as CSV.

    Raises:
        RequestError: There is no such component or layer.
    """
    component = component_of(index, query)
    cell_N = cell_values_N(index, query, component)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(CSV_COLUMNS if cell_N is not None else CSV_COLUMNS[:-1])
    columns = index.columns
    for row in chosen_rows(index, query, component).tolist():
        fact = columns.facts[row]
        largest, error = fact.largest[component], fact.error[component]
        writer.writerow(
            [
                *fact.key,
                fact.prompt,
                fact.subject,
                fact.target_true,
                fact.target_false,
                fact.relation,
                fact.logit_diff,
                fact.prob_true,
                fact.rank_true,
                *largest,
                "" if np.isnan(error) else error,
                *([] if cell_N is None else [float(cell_N[row])]),
            ]
        )
    return stream.getvalue()


def _row(index: RunIndex, component: str, row: int, cell_N: NDArray[np.float32] | None) -> dict[str, Any]:
    fact = index.columns.facts[row]
    error = fact.error[component]
    return {
        "id": fact.key[0],
        "step": fact.key[1],
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_true": fact.target_true,
        "target_false": fact.target_false,
        "relation": fact.relation,
        "logit_diff": fact.logit_diff,
        "prob_true": fact.prob_true,
        "rank_true": fact.rank_true,
        "largest": fact.largest[component]._asdict(),
        "error": None if np.isnan(error) else error,
        "is_checked": index.is_checked(fact.key),
        "cell": None if cell_N is None else float(cell_N[row]),
    }


def _named(index: RunIndex, row: int | None) -> dict[str, Any] | None:
    if row is None:
        return None
    identity, step = index.columns.facts[row].key
    return {"id": identity, "step": step}


def _marks(values: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(values, dtype=np.bool_)
