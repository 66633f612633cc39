"""Which contrasts of a run are chosen, in which order, and what is said of each in a list.

Axes: N contrasts of the run, M those that are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import ArgumentError
from lit_attr.text import cut

if TYPE_CHECKING:
    # It reads records, for which the plugin of TensorBoard waits until the first request.
    from lit_attr.evaluation.index.runs import RunIndex

Rows = NDArray[np.int64]

MOST_CHARACTERS = 100


class Selection(NamedTuple):
    """Which contrasts are asked for, and in which order.

    Attributes:
        component: The component of the scores; None for the run's first.
        words: Words that prompt, subject or answers must all have, without regard to case.
        relation: The relation; None for any.
        known: Whether the true answer is the most likely token; None for either.
        preferred: Whether the true answer is preferred; None for either.
        checked: Whether there are exact effects; None for either.
        sort: One of `Sort`, or `cell`.
        descending: The largest first.
        cell: The layer, and the place in `MEAN_ROLES` of the role, whose mean score is shown; None where none is.
    """

    component: str | None = None
    words: tuple[str, ...] = ()
    relation: str | None = None
    known: bool | None = None
    preferred: bool | None = None
    checked: bool | None = None
    sort: str = "id"
    descending: bool = False
    cell: tuple[int, int] | None = None


def words_of(text: str) -> tuple[str, ...]:
    """The words of a search, as a selection has them."""
    return tuple(text.casefold().split())


def component_of(index: RunIndex, component: str | None) -> str:
    """The component that is asked for, or the run's first. The run has contrasts.

    Raises:
        ArgumentError: The run has no such component.
    """
    if component is None:
        return index.components[0]
    if component not in index.components:
        raise ArgumentError("component", f"the run has scores of {', '.join(index.components)}; name one of them")
    return component


def chosen_rows(index: RunIndex, selection: Selection, component: str) -> Rows:
    """The rows of the contrasts that are asked for, in their order.

    Raises:
        ArgumentError: The run has no scores of the layer.
    """
    columns = index.columns
    is_chosen_N = np.ones(len(columns.facts), dtype=np.bool_)
    if selection.words:
        is_chosen_N &= _marks(all(word in text for word in selection.words) for text in columns.folded)
    if selection.relation is not None:
        is_chosen_N &= _marks(relation == selection.relation for relation in columns.relations)
    if selection.known is not None:
        is_chosen_N &= (columns.rank_true_N == 0) == selection.known
    if selection.preferred is not None:
        is_chosen_N &= (columns.logit_diff_N > 0) == selection.preferred
    if selection.checked is not None:
        is_chosen_N &= _marks(index.is_checked(fact.key) == selection.checked for fact in columns.facts)
    cell_N = cell_values_N(index, selection, component)
    if cell_N is not None:
        is_chosen_N &= ~np.isnan(cell_N)
    rows_M: Rows = is_chosen_N.nonzero()[0]
    if selection.sort == "id":
        return rows_M[::-1] if selection.descending else rows_M
    values_N: NDArray[Any] = {
        "logit_diff": columns.logit_diff_N,
        "prob_true": columns.prob_true_N,
        "rank_true": columns.rank_true_N,
        # Of either sign.
        "largest": np.abs(columns.largest[component]),
        "error": columns.error[component],
        "cell": np.abs(cell_N) if cell_N is not None else columns.logit_diff_N,
    }[selection.sort]
    values_M = values_N[rows_M]
    # NaN comes last either way.
    return rows_M[np.argsort(-values_M if selection.descending else values_M, kind="stable")]


def cell_values_N(index: RunIndex, selection: Selection, component: str) -> NDArray[np.float32] | None:
    """The mean scores in the cell of the role map that is asked for; None where none is.

    Raises:
        ArgumentError: The run has no scores of the layer.
    """
    if selection.cell is None:
        return None
    layer, role = selection.cell
    if layer not in index.layers:
        raise ArgumentError("layer", f"the run has no scores of layer {layer}; it has {_shown(index.layers)}")
    return index.cell_N(component, layer, role)


def listed(index: RunIndex, component: str, row: int) -> dict[str, Any]:
    """What a list says of a contrast, in JSON types."""
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
    }


def _shown(layers: Iterable[int]) -> str:
    return cut(", ".join(map(str, layers)), MOST_CHARACTERS)


def _marks(values: Iterable[bool]) -> NDArray[np.bool_]:
    return np.fromiter(values, dtype=np.bool_)
