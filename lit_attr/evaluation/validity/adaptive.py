"""What an adaptive run was asked for, what its pilot expected, what it paid, and what its judges say.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.attribution.error_model import FORWARDS_A_GRADIENT, costs_LT


class ExactCells:
    """How many cells of an adaptive run are exact, and what they cost.

    Args:
        layers: The chosen layers.
        depth: The number of layers of the language model.
    """

    def __init__(self, layers: Sequence[int], depth: int) -> None:
        self._layers, self._depth = layers, depth
        self._contrasts = self._cells = self._exact = 0
        self._cost = 0.0

    def add(self, components: Sequence[NDArray[np.bool_]]) -> None:
        """Adds a contrast that the error model has decided about.

        Args:
            components: The exact cells [L, T] of each component.
        """
        self._contrasts += 1
        for is_exact_LT in components:
            self._cells += is_exact_LT.size
            self._exact += int(is_exact_LT.sum())
            cost_LT = costs_LT(self._layers, self._depth, is_exact_LT.shape[1])
            self._cost += float(cost_LT[is_exact_LT].sum())

    def compute(self) -> dict[str, Any]:
        """The share of exact cells, and their mean cost in passes of the plain gradient for each contrast."""
        if not self._contrasts:
            return {"contrasts": 0, "exact_share": None, "exact_cost": None}
        return {
            "contrasts": self._contrasts,
            "exact_share": self._exact / self._cells,
            "exact_cost": self._cost / self._contrasts / FORWARDS_A_GRADIENT,
        }


class AdaptiveCells:
    """The exact cells of an adaptive run: of all components together, whose cells share one promise, and of each.

    Args:
        fields: The error model, as the run keeps it.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        # A layer is listed once for each component.
        layers = [*dict.fromkeys(fields["layers"])]
        self._layers, self._depth = layers, fields["depth"]
        self._all = ExactCells(layers, fields["depth"])
        self._by_component: dict[str, ExactCells] = {}

    def add(self, is_exact: Mapping[str, Sequence[Sequence[bool]]]) -> None:
        """Adds a contrast that the error model has decided about.

        Args:
            is_exact: By component, the exact cells.
        """
        arrays = {component: np.array(is_exact_LT, dtype=np.bool_) for component, is_exact_LT in is_exact.items()}
        self._all.add([*arrays.values()])
        for component, is_exact_LT in arrays.items():
            if component not in self._by_component:
                self._by_component[component] = ExactCells(self._layers, self._depth)
            self._by_component[component].add([is_exact_LT])

    def compute(self, component: str) -> dict[str, Any]:
        """What the pilot expected and what was paid.

        `expected_by_layer` is of one component. With several, so are `component_exact_share` and
        `component_exact_cost`, while the other figures are of all cells.
        """
        names = [*self._by_component]
        found = {name: self._fields.get(name) for name in ("expected", "expected_by_layer")}
        found = {"pilot": self._fields.get("contrasts"), **found, **self._all.compute()}
        if len(names) > 1:
            # Layer by layer, the components in the order of the records.
            found["expected_by_layer"] = self._fields["expected_by_layer"][names.index(component) :: len(names)]
            own = self._by_component[component].compute()
            found |= {f"component_{name}": own[name] for name in ("exact_share", "exact_cost")}
        return found


def adaptive_report(
    settings: Mapping[str, Any], cells: AdaptiveCells | None, component: str
) -> dict[str, Any] | None:
    """What an adaptive run was asked for, what its pilot expected, and what it paid; None for any other run.

    Args:
        settings: The module's settings, as the manifest has them.
        cells: The run's exact cells; None where it has no error model, since all contrasts are the pilot.
        component: The component whose layers are reported.
    """
    asked = settings.get("min_agreement")
    if asked is None:
        return None
    none = {"pilot": None, "expected": None, "expected_by_layer": None, "exact_share": None}
    return {
        "min_agreement": asked,
        "min_agreement_by_layer": settings.get("min_agreement_by_layer"),
        "max_cost": settings.get("max_cost"),
        **(none if cells is None else cells.compute(component)),
    }
