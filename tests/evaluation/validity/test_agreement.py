"""Agreement of scores and exact effects, on made-up numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from agreements import part
from scipy import stats

from lit_attr.evaluation.validity.agreement import (
    Compared,
    Facts,
    agreement_of,
    agreement_report,
    pearson,
    promise_line,
    verdict,
)
from lit_attr.evaluation.validity.intervals import correlation_interval, moments_of, resample_weights_SF
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.roles import MEAN_ROLES


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    return [sample_contrasts[0], sample_contrasts[200], sample_contrasts[-1]]


def compared(contrasts: list[Contrast], noise: tuple[float, float] = (0.3, 2.0)) -> list[Compared]:
    generator = np.random.default_rng(0)
    found = []
    for contrast in contrasts:
        effects_LT = generator.standard_normal((2, len(contrast.tokens)))
        scores_LT = effects_LT + np.array(noise)[:, None] * generator.standard_normal(effects_LT.shape)
        found.append(Compared(scores_LT, effects_LT, contrast.roles, contrast.subject_span, contrast.fact.id))
    return found


def cells(values: list[np.ndarray], layer: int | None = None) -> np.ndarray:
    """The values of all contrasts, by a loop."""
    return np.array(
        [
            values_LT[place, token]
            for values_LT in values
            for place in (range(len(values_LT)) if layer is None else [layer])
            for token in range(values_LT.shape[1])
        ]
    )


def spearman(ours: np.ndarray, exact: np.ndarray) -> float:
    """Random numbers have no ties."""
    return float(np.corrcoef(ours.argsort().argsort(), exact.argsort().argsort())[0, 1])


def test_agrees_with_another_library_over_all_cells_and_by_layer(contrasts: list[Contrast]):
    pairs = compared(contrasts)
    found = agreement_report([4, 9], pairs)
    assert (found["contrasts"], found["facts"], found["ablation"]) == (3, 3, "zero")
    scores, effects = [each.scores_LT for each in pairs], [each.effects_LT for each in pairs]
    ours, exact = cells(scores), cells(effects)
    assert found["pearson"] == pytest.approx(np.corrcoef(ours, exact)[0, 1], abs=1e-12)
    assert found["pearson"] == pytest.approx(stats.pearsonr(ours, exact).statistic, abs=1e-12)
    for place, layer in enumerate(("4", "9")):
        expected = np.corrcoef(cells(scores, place), cells(effects, place))[0, 1]
        assert found["by_layer"][layer]["pearson"] == pytest.approx(expected, abs=1e-12)
    assert found["same_sign"] == pytest.approx(np.mean(np.sign(ours) == np.sign(exact)))
    for agreement, place, top in (
        (found, None, 10),
        (found["by_layer"]["4"], 0, 3),
        (found["by_layer"]["9"], 1, 3),
    ):
        each = [(cells([mine], place), cells([true], place)) for mine, true in zip(scores, effects, strict=True)]
        assert agreement["spearman"] == pytest.approx(np.mean([spearman(*pair) for pair in each]), abs=1e-12)
        overlaps = [
            len(set(np.argsort(-np.abs(mine))[:top]) & set(np.argsort(-np.abs(true))[:top])) / top
            for mine, true in each
            if len(mine) > top
        ]
        assert len(overlaps) > 0
        assert agreement[f"top_{top}_overlap"] == pytest.approx(np.mean(overlaps))
    at_last = [np.concatenate([values_LT[:, -1] for values_LT in values]) for values in (scores, effects)]
    assert found["by_role"]["last"]["pearson"] == pytest.approx(np.corrcoef(*at_last)[0, 1], abs=1e-12)


def test_position_0_is_apart(contrasts: list[Contrast]):
    pairs = compared(contrasts)
    found = agreement_report([4, 9], pairs)
    first, later = (
        [
            np.concatenate([values_LT[:, tokens].ravel() for values_LT in values])
            for values in (
                [each.scores_LT for each in pairs],
                [each.effects_LT for each in pairs],
            )
        ]
        for tokens in (slice(0, 1), slice(1, None))
    )
    assert found["without_position_0"]["pearson"] == pytest.approx(np.corrcoef(*later)[0, 1], abs=1e-12)
    assert found["by_role"]["position 0"]["pearson"] == pytest.approx(np.corrcoef(*first)[0, 1], abs=1e-12)
    # Whatever the first token's role is, its cells are in no other row.
    changed = [
        each._replace(scores_LT=np.hstack([each.scores_LT[:, :1] + 9, each.scores_LT[:, 1:]])) for each in pairs
    ]
    by_role = agreement_report([4, 9], changed)["by_role"]
    for role in MEAN_ROLES[1:]:
        assert by_role[role] == found["by_role"][role]
    assert by_role["position 0"]["spearman"] is not None


def test_effects_that_are_rounding_noise_have_no_sign_and_no_rank():
    # As in a last layer: the scores of earlier tokens are 0, and their effects are noise.
    scores_LT = np.array([[0.0, 0.0, 0.0, 2.0], [1.0, -2.0, 3.0, -4.0]])
    effects_LT = np.array([[1e-7, -2e-7, 1e-7, 1.5], [2.0, 2e-7, 5.0, -7.0]])
    pair = Compared(scores_LT, effects_LT, ("prefix", "last subject", "further", "last"), (1, 2), 0)
    assert agreement_report([0, 1], [pair])["by_layer"]["0"]["same_sign"] == 1 / 4
    found = agreement_report([0, 1], [pair], resolution=1e-6)
    assert found["resolution"] == 1e-6
    assert found["by_layer"]["0"]["same_sign"] == 1
    # Three of the second layer's cells remain: 1, 3, -4 against 2, 5, -7.
    assert (found["by_layer"]["1"]["same_sign"], found["by_layer"]["1"]["spearman"]) == (1, pytest.approx(1))
    assert found["pearson"] == agreement_report([0, 1], [pair])["pearson"]


def test_intervals_resample_facts_not_contrasts():
    generator = np.random.default_rng(5)
    roles, pairs = ("prefix", "last subject", "last"), []
    for fact in range(8):
        for _ in range(2):
            effects_LT = generator.standard_normal((1, 3))
            scores_LT = effects_LT + generator.standard_normal((1, 3))
            pairs.append(Compared(scores_LT, effects_LT, roles, (1, 2), fact))
    found = agreement_report([0], pairs)
    assert (found["contrasts"], found["facts"]) == (16, 8)
    # Pairs of contrasts joined by hand.
    joined = [
        (np.hstack([one.scores_LT[0], two.scores_LT[0]]), np.hstack([one.effects_LT[0], two.effects_LT[0]]))
        for one, two in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    means = [np.mean([cells[place] for cells in joined]) for place in (0, 1)]
    moments_FM = np.array([moments_of(x_N - means[0], y_N - means[1]) for x_N, y_N in joined])
    expected = correlation_interval(moments_FM, resample_weights_SF(8))
    assert found["intervals"]["pearson"] == pytest.approx(expected, abs=1e-9)
    apart = agreement_report([0], [each._replace(fact=place) for place, each in enumerate(pairs)])
    assert apart["intervals"]["pearson"] != pytest.approx(expected, abs=1e-3)


def test_a_one_token_subject_counts_as_first_and_last():
    roles = ("prefix", "last subject", "last")
    scores_LT, effects_LT = (
        np.array([[1.0, 2.0, 3.0], [1.0, 5.0, 3.0]]),
        np.array([[1.0, 7.0, 3.0], [1.0, 8.0, 3.0]]),
    )
    by_role = agreement_report([0, 1], [Compared(scores_LT, effects_LT, roles, (1, 2), 0)])["by_role"]
    assert list(by_role) == list(MEAN_ROLES)
    assert by_role["first subject"] == by_role["last subject"]
    assert by_role["first subject"]["pearson"] == pytest.approx(1)
    assert by_role["middle subject"] == {
        "pearson": None,
        "spearman": None,
        "same_sign": None,
        "top_3_overlap": None,
        "intervals": {"pearson": None, "spearman": None, "same_sign": None, "top_3_overlap": None},
    }


def test_ties_share_their_rank_and_cells_that_are_zero_twice_have_none():
    scores_N = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 0.0])
    effects_N = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 0.0])
    found = agreement_of([(scores_N, effects_N)], Facts.of([0]), top=3)
    either = slice(1, 5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(scores_N[either], effects_N[either]).statistic)
    # The first of the four has a score of 0 and an effect of 1.
    assert found["same_sign"] == 3 / 4
    assert found["pearson"] == pytest.approx(np.corrcoef(scores_N, effects_N)[0, 1])
    assert found["top_3_overlap"] == 1.0


def test_too_few_cells_give_no_number():
    empty = agreement_report([0], [])
    assert (empty["contrasts"], empty["pearson"]) == (0, None)
    zeros_LT = np.zeros((1, 3))
    found = agreement_report([0], [Compared(zeros_LT, zeros_LT, ("prefix", "last subject", "last"), (1, 2), 0)])
    assert found["pearson"] is None
    assert found["contrasts"] == 1
    assert orjson.loads(orjson.dumps(found)) == found


def test_the_verdict_names_layers_that_are_poor_beyond_doubt():
    report: dict[str, Any] = {
        "contrasts": 16,
        "ablation": "zero",
        **part(0.7, 0.6, 0.8),
        "without_position_0": part(0.75, 0.66, 0.84),
        "by_layer": {
            "0": part(0.31, 0.1, 0.49),
            "1": part(0.31, 0.1, 0.52),
            "2": part(0.9, 0.8, 0.95),
            "3": part(None),
            "4": part(0.6, 0.4, 0.7),
            "5": part(0.9),
        },
    }
    assert verdict(report) == (
        "16 contrasts compared with their exact effects (zero ablation): r = 0.70 (95% interval 0.60 to 0.80) "
        "over all layers and tokens, 0.75 (95% interval 0.66 to 0.84) without position 0; do not rely on "
        "the scores of layer 0 (r = 0.31); too few to tell for layers 1, 4, 5: verify more"
    )
    many = {str(layer): part(0.6, 0.4, 0.7) for layer in range(8)}
    assert verdict({**report, "by_layer": many}).endswith("; too few to tell for 8 of 8 layers: verify more")
    assert verdict({**report, "contrasts": 1}).startswith("1 contrast compared with its exact effects (zero")
    report["by_layer"] = {"0": part(0.9, 0.8, 0.95)}
    assert verdict(report).endswith("without position 0")
    assert verdict({**report, **part(0.2, 0.1, 0.4)}).endswith("; do not compare scores across layers")
    assert "across layers" not in verdict({**report, **part(0.2, 0.1, 0.6)})
    assert "r = 0.20 (no interval) over" in verdict({**report, **part(0.2)})
    assert verdict({**report, **part(None)}).endswith("(zero ablation): r is undefined")
    assert "exact effects (mean ablation): r" in verdict({**report, "ablation": "mean"})


ADAPTIVE = {
    "min_agreement": 0.65,
    "min_agreement_by_layer": 0.8,
    "exact_share": 0.125,
    "exact_cost": 3.875,
    "pilot": 16,
    "expected": 0.9625,
}


def test_the_promise_is_compared_with_what_was_asked_for():
    report: dict[str, Any] = {
        "contrasts": 64,
        **part(0.7, 0.6, 0.8),
        "estimated_cells": part(0.5, 0.25, 0.75),
        "by_layer": {"0": part(0.85), "1": part(None), "2": part(0.95)},
    }
    assert promise_line(ADAPTIVE, report) == (
        "r of at least 0.65 asked for, 0.8 in each layer; 12.5% of the cells are exact, which costs about 3.9 "
        "passes of the gradient beside the estimates; the pilot of 16 expected r = 0.963; kept on the 64 verified "
        "contrasts; r = 0.50 (95% interval 0.25 to 0.75) over the estimated cells alone"
    )
    poor = {**report, "by_layer": {"0": part(0.75), "2": part(0.95)}}
    assert "; not kept on the 64 verified contrasts, below 0.8 in layer 0; r" in promise_line(ADAPTIVE, poor)
    overall = {**ADAPTIVE, "min_agreement_by_layer": None}
    assert "; kept on the 64" in promise_line(overall, poor) and "each layer" not in promise_line(overall, poor)
    assert "; not kept on the 64 verified" in promise_line({**overall, "min_agreement": 0.71}, report)
    assert promise_line(ADAPTIVE, None).endswith("; nothing was verified")


def test_estimated_cells_are_judged_alone():
    scores_LT, effects_LT = np.array([[1.0, 2.0, 3.0, 4.0]] * 2), np.array([[1.0, 5.0, 2.0, 4.0]] * 2)
    is_exact_LT = np.array([[True, False, False, True], [False, True, True, True]])
    roles = ("prefix", "last subject", "further", "last")
    pair = Compared(scores_LT, effects_LT, roles, (1, 2), 0, is_exact_LT)
    found = agreement_report([0, 1], [pair])["estimated_cells"]
    # 2, 3 and 1 against 5, 2 and 1.
    assert found["pearson"] == pytest.approx(np.corrcoef([2, 3, 1], [5, 2, 1])[0, 1])
    assert "estimated_cells" not in agreement_report([0, 1], [pair._replace(is_exact_LT=None)])


def test_constant_values_have_no_correlation():
    generator = np.random.default_rng(0)
    assert pearson(np.full(30, 0.1), generator.standard_normal(30)) is None
    assert pearson(generator.standard_normal(30), np.full(30, 0.1)) is None
    # Values that differ by rounding alone.
    assert pearson(0.1 + 1e-17 * generator.standard_normal(30), generator.standard_normal(30)) is None
