"""What an adaptive run has paid, and the promise of several components, on made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.evaluation.validity.adaptive import AdaptiveCells, ExactCells, adaptive_report
from lit_attr.evaluation.validity.agreement import Compared, agreement_report, agreement_together, promise_line

NONE, ALL = [[False, False]] * 2, [[True, True]] * 2
ROLES = ("prefix", "last subject", "further", "last")


def test_exact_cells_are_counted_with_their_cost():
    exact = ExactCells([0, 2], depth=4)
    assert exact.compute() == {"contrasts": 0, "exact_share": None, "exact_cost": None}
    # Forwards: (4 − 0)(2 − 0)/8 = 1 and (4 − 2)(2 − 1)/8 = 1/4. A gradient takes two.
    exact.add([np.array([[True, False], [False, True]])])
    exact.add([np.zeros((2, 2), dtype=bool)])
    assert exact.compute() == {"contrasts": 2, "exact_share": 2 / 8, "exact_cost": 1.25 / 2 / 2}


def test_components_share_the_cost_and_have_their_own_layers():
    # Layer 0 of mlp and of attention, then layer 2 of both.
    fields = {"layers": [0, 0, 2, 2], "depth": 4, "contrasts": 6, "expected": 0.9}
    cells = AdaptiveCells({**fields, "expected_by_layer": [0.1, 0.2, 0.3, None]})
    cells.add({"mlp": ALL, "attention": [[True, False], [False, False]]})
    settings = {"min_agreement": 0.8, "min_agreement_by_layer": None, "max_cost": None}
    found = {name: adaptive_report(settings, cells, name) for name in ("mlp", "attention")}
    # Forwards: 1 and 1/2 of the tokens in layer 0, 1/2 and 1/4 in layer 2.
    shared = {"min_agreement": 0.8, "pilot": 6, "expected": 0.9, "contrasts": 1}
    shared |= {"exact_share": 5 / 8, "exact_cost": (2.25 + 1) / 2}
    own = {
        "mlp": ([0.1, 0.3], 1, 2.25 / 2),
        "attention": ([0.2, None], 1 / 4, 1 / 2),
    }
    for name, (by_layer, share, cost) in own.items():
        report = found[name]
        assert report is not None
        assert {each: report[each] for each in shared} == shared
        assert report["expected_by_layer"] == by_layer
        assert (report["component_exact_share"], report["component_exact_cost"]) == (share, cost)
    assert adaptive_report({}, cells, "mlp") is None


def test_a_single_component_has_no_figures_of_its_own():
    fields = {"layers": [0, 2], "depth": 4, "contrasts": 6, "expected": 0.9, "expected_by_layer": [0.1, None]}
    cells = AdaptiveCells(fields)
    cells.add({"mlp": NONE})
    assert cells.compute("mlp") == {
        "pilot": 6,
        "expected": 0.9,
        "expected_by_layer": [0.1, None],
        "contrasts": 1,
        "exact_share": 0,
        "exact_cost": 0,
    }


def test_the_promise_is_judged_over_the_cells_of_all_components():
    generator = np.random.default_rng(0)
    components, reports = {}, {}
    for name, noise in (("mlp", 0.1), ("attention", 2.0)):
        pairs = []
        for fact in range(5):
            effects_LT = generator.standard_normal((2, 4))
            scores_LT = effects_LT + noise * generator.standard_normal((2, 4))
            is_exact_LT = generator.random((2, 4)) < 0.25
            scores_LT[is_exact_LT] = effects_LT[is_exact_LT]
            pairs.append(Compared(scores_LT, effects_LT, ROLES, (1, 2), fact, is_exact_LT))
        components[name], reports[name] = pairs, agreement_report([3, 7], pairs)
    found = agreement_together(components, reports)
    every = [each for pairs in components.values() for each in pairs]
    scores_N, effects_N, is_exact_N = (
        np.concatenate([np.ravel(part) for part in parts])
        for parts in (
            [each.scores_LT for each in every],
            [each.effects_LT for each in every],
            [each.is_exact_LT for each in every],
        )
    )
    assert found["contrasts"] == 5
    assert found["pearson"] == pytest.approx(np.corrcoef(scores_N, effects_N)[0, 1])
    assert found["estimated_cells"]["pearson"] == pytest.approx(
        np.corrcoef(scores_N[~is_exact_N], effects_N[~is_exact_N])[0, 1]
    )
    assert list(found["by_layer"]) == ["3 (mlp)", "7 (mlp)", "3 (attention)", "7 (attention)"]
    of_7 = [
        np.concatenate([getattr(each, name)[1] for each in components["attention"]])
        for name in Compared._fields[:2]
    ]
    assert found["by_layer"]["7 (attention)"]["pearson"] == pytest.approx(np.corrcoef(*of_7)[0, 1])
    # The mean of two components may be kept where one of them is not.
    paid = {"exact_share": 0.25, "exact_cost": 1, "pilot": 6, "expected": 0.9}
    adaptive = {**paid, "min_agreement": 0.5, "min_agreement_by_layer": 0.95, "agreement": found}
    line = promise_line(adaptive, reports["mlp"])
    assert "; not kept on the 5 verified contrasts, below 0.95 in layers 3 (attention), 7 (attention); r" in line
    assert found["pearson"] > 0.5
    assert "; kept on the 5 verified" in promise_line({**adaptive, "min_agreement_by_layer": None}, None)
