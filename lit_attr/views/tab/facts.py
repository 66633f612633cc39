"""One fact of a run, with its exact effects where there are any.

Axes: L layers, T tokens.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from lit_attr.evaluation.index.runs import RunIndex
from lit_attr.evaluation.index.selection import Selection
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.records.schema import Example
from lit_attr.views.colours import scale_of
from lit_attr.views.tab.queries import RequestError
from lit_attr.views.tab.tables import component_of, neighbours

TEXTS = (
    "id",
    "step",
    "relation_id",
    "prompt",
    "subject",
    "target_true",
    "target_false",
    "tokens",
    "roles",
    "subject_span",
    "true_token",
    "false_token",
)
NUMBERS = ("logit_true", "logit_false", "logit_diff", "prob_true", "prob_false", "rank_true")
MOST_NEURONS = 20


def fact_page(index: RunIndex, selection: Selection, key: ContrastKey) -> dict[str, Any]:
    """A contrast as its page shows it, in JSON types.

    `scale` and `effects_scale` are the magnitudes that get the deepest colour, as in the pictures: position 0 does
    not set them.

    Raises:
        RequestError: The run has no such contrast.
        ArgumentError: It has no such component.
        UserError: A file is damaged or was changed since.
    """
    component = component_of(index, selection)
    row = index.columns.row_of.get(key)
    if row is None:
        raise RequestError("id: the run has no such fact; it may not be done yet", 404)
    batch, example = index.example(row)
    exact = index.exact(key)
    fields = msgspec.structs.asdict(example)
    scores_LT = example.scores[component].sum
    effects_LT = None if exact is None or exact.refused is not None else exact.effects.get(component)
    return {
        **{name: fields[name] for name in (*TEXTS, *NUMBERS)},
        "component": component,
        "rule": batch.rule,
        "layers": batch.layers,
        "scores": scores_LT.tolist(),
        "scale": _scale(scores_LT),
        "is_exact": None if example.is_exact is msgspec.UNSET else example.is_exact.get(component),
        "effects": None if effects_LT is None else effects_LT.tolist(),
        "effects_scale": None if effects_LT is None else _scale(effects_LT),
        "resolution": None if exact is None else exact.resolution,
        "ablation": None if exact is None else exact.ablation,
        "is_pilot": exact is not None and exact.is_pilot,
        "refused": None if exact is None else exact.refused,
        "error": _finite(index.columns.facts[row].error[component]),
        "neurons": _neurons(example),
        "around": neighbours(index, selection, component, key),
    }


def _neurons(example: Example) -> list[dict[str, Any]]:
    if example.neurons is msgspec.UNSET:
        return []
    largest = sorted(example.neurons, key=lambda neuron: -abs(neuron.score))[:MOST_NEURONS]
    return [msgspec.structs.asdict(neuron) for neuron in largest]


def _scale(values_LT: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return scale_of(values_LT.T)


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else value
