"""Agreement of scores and exact effects, on made-up numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from scipy import stats

from lit_attr.evaluation.agreement import Compared, agreement_of, agreement_report, pearson, verdict
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.roles import ROLES


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    return [sample_contrasts[0], sample_contrasts[200], sample_contrasts[-1]]


def compared(contrasts: list[Contrast], noise: tuple[float, float] = (0.3, 2.0)) -> list[Compared]:
    generator = np.random.default_rng(0)
    found = []
    for contrast in contrasts:
        effects_LT = generator.standard_normal((2, len(contrast.tokens)))
        scores_LT = effects_LT + np.array(noise)[:, None] * generator.standard_normal(effects_LT.shape)
        found.append(Compared(scores_LT, effects_LT, contrast.roles, contrast.subject_span))
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
    assert (found["contrasts"], found["ablation"]) == (3, "zero")
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


def test_a_one_token_subject_counts_as_first_and_last():
    roles = ("prefix", "last subject", "last")
    scores_LT, effects_LT = (
        np.array([[1.0, 2.0, 3.0], [1.0, 5.0, 3.0]]),
        np.array([[1.0, 7.0, 3.0], [1.0, 8.0, 3.0]]),
    )
    by_role = agreement_report([0, 1], [Compared(scores_LT, effects_LT, roles, (1, 2))])["by_role"]
    assert list(by_role) == list(ROLES)
    assert by_role["first subject"] == by_role["last subject"]
    assert by_role["first subject"]["pearson"] == pytest.approx(1)
    assert by_role["middle subject"] == {
        "pearson": None,
        "spearman": None,
        "same_sign": None,
        "top_3_overlap": None,
    }


def test_ties_share_their_rank_and_cells_that_are_zero_twice_have_none():
    scores_N = np.array([0.0, 0.0, 1.0, 1.0, 2.0, 0.0])
    effects_N = np.array([0.0, 1.0, 2.0, 3.0, 2.0, 0.0])
    found = agreement_of([(scores_N, effects_N)], top=3)
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
    found = agreement_report([0], [Compared(zeros_LT, zeros_LT, ("prefix", "last subject", "last"), (1, 2))])
    assert found["pearson"] is None
    assert found["contrasts"] == 1
    assert orjson.loads(orjson.dumps(found)) == found


def test_the_verdict_names_poor_layers():
    found = {"0": 0.41, "1": 0.9, "2": None}
    report: dict[str, Any] = {"contrasts": 16, "pearson": 0.7}
    report["by_layer"] = {layer: {"pearson": value} for layer, value in found.items()}
    assert verdict(report) == (
        "16 contrasts compared with their exact effects (zero ablation): r = 0.70 over all layers and tokens; "
        "do not rely on the scores of layer 0 (r = 0.41)"
    )
    report["by_layer"] = {"0": {"pearson": 0.9}}
    assert verdict(report).endswith("r = 0.70 over all layers and tokens")
    assert verdict({**report, "pearson": 0.2}).endswith("do not compare scores across layers")
    assert verdict({**report, "pearson": None}).endswith("(zero ablation): r is undefined")


def test_constant_values_have_no_correlation():
    generator = np.random.default_rng(0)
    assert pearson(np.full(30, 0.1), generator.standard_normal(30)) is None
    assert pearson(generator.standard_normal(30), np.full(30, 0.1)) is None
    # Values that differ by rounding alone.
    assert pearson(0.1 + 1e-17 * generator.standard_normal(30), generator.standard_normal(30)) is None
