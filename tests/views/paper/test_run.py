"""Reading a run: the means over roles, and the facts that are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sealed import reseal
from tiny_runs import LAST, ONE, QUANTILE, START, TWO, example, write_run

from lit_attr.attribution.results import AttributionBatch
from lit_attr.evaluation.summary import summarise
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import RunFolder
from lit_attr.records.reading import to_dict
from lit_attr.views.paper.run import estimate, pick_facts, read_run


def test_means_and_confidence_match_hand_computation(run: Path):
    taken = read_run(run)
    each = estimate(taken.means_NLR, taken.facts_N)
    # Two contrasts: the one of a token with itself is left out.
    assert each.count_R.tolist() == [2, 0, 0, 0, 2, 2, 0, 2]
    np.testing.assert_allclose(each.mean_LR[:, LAST], [5, 2])
    np.testing.assert_allclose(each.mean_LR[:, START], [2.5, 9.5])
    # The subject begins at position 0, which is in no role.
    assert np.isnan(each.mean_LR[:, 2]).all()
    # The standard error of two values a and b is |a - b| / 2.
    np.testing.assert_allclose(each.half_LR[:, LAST], [QUANTILE * 1, QUANTILE * 6], rtol=1e-6)


def test_scores_are_estimates_unless_their_rule_is_exact(tmp_path: Path):
    folder = write_run(tmp_path / "run", [ONE])
    assert read_run(folder).quantity == "score (estimate)"
    (path,) = (folder / "batches").iterdir()
    reseal(path, lambda batch: batch.update(rule="exact"))
    assert read_run(folder).quantity == "exact effect"


def test_means_match_the_summary(batch: AttributionBatch, tmp_path: Path):
    folder = write_run(tmp_path / "run", [])
    RunFolder(folder).write_batch(batch_record(batch))
    profile = summarise(RunFolder(folder)).summary["profile"]
    taken = read_run(folder)
    each = estimate(taken.means_NLR, taken.facts_N)
    mean_LR, error_LR = (np.array(profile[name], dtype=float) for name in ("mean_score", "standard_error"))
    np.testing.assert_allclose(each.mean_LR, mean_LR, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(each.half_LR, QUANTILE * error_LR, rtol=1e-4, atol=1e-7)
    assert each.count_R.tolist() == profile["contrasts"]


def test_hand_made_examples_are_like_written_ones(batch: AttributionBatch):
    assert set(to_dict(batch_record(batch).examples[0])) == set(ONE)


def test_one_contrast_has_a_mean_and_no_band(tmp_path: Path):
    taken = read_run(write_run(tmp_path / "run", [ONE]))
    each = estimate(taken.means_NLR, taken.facts_N)
    np.testing.assert_allclose(each.mean_LR[:, LAST], [4, 8])
    assert np.isnan(each.half_LR).all()


def test_intervals_are_clustered_by_fact(tmp_path: Path):
    """Three facts with the last token's scores 1, 2 and 3; 4; 8 and 0, in the order of no fact."""
    steps = [("a", 0, 1), ("c", 0, 8), ("a", 1, 2), ("b", 0, 4), ("c", 1, 0), ("a", 2, 3)]
    contrasts = [example(fact, [[0, 0, 0, score]], step=step) for fact, step, score in steps]
    folder = write_run(tmp_path / "run", contrasts, layers=1)
    taken = read_run(folder)
    assert taken.facts_N.tolist() == [0, 1, 0, 2, 1, 0]
    each = estimate(taken.means_NLR, taken.facts_N)
    assert (each.mean_LR[0, LAST], each.count_R[LAST]) == (3, 6)
    # Deviations of the facts' totals from the mean times their contrasts: -3, 1, 2; √(3/2 · (9 + 1 + 4)) / 6.
    np.testing.assert_allclose(each.half_LR[0, LAST], QUANTILE * 21**0.5 / 6, rtol=1e-6)
    one = taken.only(np.array(taken.facts_N) == 0)
    each = estimate(one.means_NLR, one.facts_N)
    assert each.mean_LR[0, LAST] == 2 and np.isnan(each.half_LR[0, LAST])
    # The summary counts facts as the figures do.
    profile = summarise(RunFolder(folder)).summary["profile"]
    assert (profile["facts"][LAST], profile["contrasts"][LAST]) == (3, 6)
    assert profile["standard_error"][0][LAST] == pytest.approx(21**0.5 / 6)


def test_facts_are_spread_over_the_run_or_chosen_by_id(tmp_path: Path):
    facts = [example(number, [[1] * 4] * 2, rank_true=number % 2) for number in range(9)]
    taken = read_run(write_run(tmp_path / "run", facts))

    def picked(count: int, ids: list[str], known: bool) -> list[int]:
        return [record["id"] for record in pick_facts(taken, count, ids, known=known)]

    assert picked(3, [], False) == [0, 4, 8]
    assert picked(2, [], True) == [0, 8]
    assert picked(20, [], True) == [0, 2, 4, 6, 8]
    assert picked(0, [], False) == []
    assert picked(3, ["7", "2"], True) == [7, 2]


def test_takes_the_scores_of_the_component_named_first(tmp_path: Path):
    scores = {"attention": TWO["scores"]["mlp"], "mlp": ONE["scores"]["mlp"]}
    taken = read_run(write_run(tmp_path / "run", [{**ONE, "scores": scores}]))
    assert (taken.component, taken.title) == ("attention", "tiny attention")
    np.testing.assert_array_equal(taken.means_NLR[0, :, LAST], [6, -4])
