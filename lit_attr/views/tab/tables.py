"""The table of a run's facts, in pages and as CSV.

Axes: N contrasts of the run, M those that are chosen.
"""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.evaluation.index.runs import RunIndex
from lit_attr.evaluation.index.selection import Selection, cell_values_N, chosen_rows, listed
from lit_attr.evaluation.index.selection import component_of as selection_component
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.views.tab.queries import RequestError

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


def component_of(index: RunIndex, selection: Selection) -> str:
    """The component that is asked for, or the run's first.

    Raises:
        RequestError: The run has no contrast.
        ArgumentError: It has no such component.
    """
    if not index.components:
        raise RequestError("the run has no contrast yet; refresh the page once it has", 404)
    return selection_component(index, selection.component)


def table_page(index: RunIndex, selection: Selection, page: int, size: int) -> dict[str, Any]:
    """A page of the table, in JSON types.

    Raises:
        RequestError: There is no such page.
        ArgumentError: There is no such component or layer.
    """
    if not index.components and page == 1:
        return {"total": 0, "page": 1, "size": size, "rows": []}
    component = component_of(index, selection)
    rows_M = chosen_rows(index, selection, component)
    if page > 1 and (page - 1) * size >= len(rows_M):
        raise RequestError(f"page: there are {-(-len(rows_M) // size)} pages of {size} rows", 404)
    cell_N = cell_values_N(index, selection, component)
    return {
        "total": len(rows_M),
        "page": page,
        "size": size,
        "component": component,
        "rows": [_row(index, component, row, cell_N) for row in rows_M[(page - 1) * size : page * size].tolist()],
    }


def neighbours(index: RunIndex, selection: Selection, component: str, key: ContrastKey) -> dict[str, Any]:
    """Where a contrast stands among those asked for: its place from 1, their number, the one before and after."""
    rows = chosen_rows(index, selection, component)
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


def table_csv(index: RunIndex, selection: Selection) -> str:
    """All contrasts that are asked for as CSV.

    Raises:
        ArgumentError: There is no such component or layer.
    """
    component = component_of(index, selection)
    cell_N = cell_values_N(index, selection, component)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(CSV_COLUMNS if cell_N is not None else CSV_COLUMNS[:-1])
    columns = index.columns
    for row in chosen_rows(index, selection, component).tolist():
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
    return {**listed(index, component, row), "cell": None if cell_N is None else float(cell_N[row])}


def _named(index: RunIndex, row: int | None) -> dict[str, Any] | None:
    if row is None:
        return None
    identity, step = index.columns.facts[row].key
    return {"id": identity, "step": step}
