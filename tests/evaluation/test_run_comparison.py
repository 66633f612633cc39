"""The comparison of two runs, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sealed import reseal
from tiny_runs import example, write_run

from lit_attr.errors import UserError
from lit_attr.evaluation.run_comparison import compare_runs, comparison_lines

FIRST_ONE, FIRST_TWO = [[1, 2, 3, 4], [0, 1, 0, 2]], [[2, 2, 0, 0], [4, 0, 0, -8]]
SECOND_ONE, SECOND_TWO = [[1, 2, 3, 2], [0, 2, 0, 4]], [[2, 2, 0, 0], [4, 0, 0, -6]]


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with two contrasts in common, and one each that the other lacks."""
    shared = {"logit_diff": 1.5, "logit_true": 1.5, "rank_true": 0}
    changed = {"logit_diff": -0.5, "logit_true": -0.5, "rank_true": 2}
    first = [example(1, FIRST_ONE, **shared), example(2, FIRST_TWO, **shared), example(3, FIRST_TWO)]
    second = [example(1, SECOND_ONE, **shared), example(2, SECOND_TWO, **changed), example(4, FIRST_ONE)]
    return write_run(tmp_path / "first", first), write_run(tmp_path / "second", second)


def test_numbers_are_those_of_the_common_contrasts(runs: tuple[Path, Path]):
    found = compare_runs(*runs)
    assert found["contrasts"] == 2
    assert found["left_out"] == {"only_first": 1, "only_second": 1, "other_tokens": 0}
    old = np.array([*np.ravel(FIRST_ONE), *np.ravel(FIRST_TWO)])
    new = np.array([*np.ravel(SECOND_ONE), *np.ravel(SECOND_TWO)])
    assert found["all"]["pearson"] == pytest.approx(np.corrcoef(old, new)[0, 1])
    # √(30 + 5 + 8 + 80) and √(18 + 20 + 8 + 52); the largest errors are 2 of 4 and 2 of 8.
    assert found["all"]["norm_ratio"] == pytest.approx((98 / 123) ** 0.5)
    assert found["all"]["largest_error"] == pytest.approx(0.5)
    # Layer 1: √(5 + 80) and √(20 + 52).
    assert found["by_layer"]["1"]["norm_ratio"] == pytest.approx((72 / 85) ** 0.5)
    assert list(found["by_layer"]) == ["0", "1"]


def test_answers_that_changed_are_counted_and_listed(runs: tuple[Path, Path]):
    answers = compare_runs(*runs)["answers"]
    assert (answers["preferred_changed"], answers["known_changed"]) == (1, 1)
    assert answers["mean_change"] == pytest.approx(1.0)
    (changed,) = answers["clearest"]
    assert (changed["id"], changed["first"], changed["second"]) == (2, 1.5, -0.5)


def test_a_run_equals_itself(runs: tuple[Path, Path]):
    found = compare_runs(runs[0], runs[0])
    assert found["all"] == {"pearson": pytest.approx(1), "norm_ratio": 1, "largest_error": 0}
    assert found["answers"]["preferred_changed"] == 0


def test_other_tokens_are_not_compared(tmp_path: Path):
    first = write_run(tmp_path / "first", [example(1, FIRST_ONE), example(2, FIRST_ONE)])
    other = example(2, FIRST_ONE, tokens=["A", " B", " is", " at"])
    second = write_run(tmp_path / "second", [example(1, FIRST_ONE), other])
    found = compare_runs(first, second)
    assert (found["contrasts"], found["left_out"]["other_tokens"]) == (1, 1)


def test_the_lines_have_a_row_a_layer(runs: tuple[Path, Path]):
    lines = [*comparison_lines(compare_runs(*runs))]
    assert lines[0] == "2 contrasts compared, scores of mlp; left out: 1 only first, 1 only second"
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == ["| all", "| 0", "| 1"]
    assert lines[-1] == "- id 2, step 0: +1.50 to -0.50: 'A B is in'"


def test_runs_without_a_common_contrast_component_or_layer_are_refused(runs: tuple[Path, Path], tmp_path: Path):
    other = write_run(tmp_path / "other", [example(9, FIRST_ONE)])
    with pytest.raises(UserError) as refused:
        compare_runs(runs[0], other)
    assert str(refused.value) == (
        f"{other}: it has no contrast in common with {runs[0]}; give runs of the same facts"
    )
    with pytest.raises(UserError, match="has scores of mlp; name one that both runs have"):
        compare_runs(*runs, component="attention")
    (batch,) = (other / "batches").iterdir()
    reseal(batch, lambda content: content.update(layers=[4, 5]))
    with pytest.raises(UserError) as refused:
        compare_runs(runs[0], other)
    assert str(refused.value) == (
        f"{other}: it has no layer in common with {runs[0]}; give runs of the same layers"
    )


def test_the_first_component_of_the_first_run_is_compared_unless_one_is_named(tmp_path: Path):
    def of(**scores: list[list[float]]) -> dict[str, Any]:
        return {**example(1, FIRST_ONE), "scores": {name: {"sum": each} for name, each in scores.items()}}

    zero = [[0.0] * len(FIRST_ONE[0]) for _ in FIRST_ONE]
    first = write_run(tmp_path / "first", [of(attention=FIRST_ONE, mlp=zero)])
    second = write_run(tmp_path / "second", [of(mlp=zero, attention=FIRST_ONE)])
    found = compare_runs(first, second)
    assert (found["components"], found["all"]["norm_ratio"]) == (["attention", "attention"], 1)
    assert compare_runs(first, second, component="mlp")["all"]["norm_ratio"] is None
    # A run of another component.
    block = write_run(tmp_path / "block", [of(block=FIRST_ONE)])
    found = compare_runs(first, block)
    assert (found["components"], found["all"]["norm_ratio"]) == (["attention", "block"], 1)
    assert next(comparison_lines(found)) == "1 contrast compared, scores of attention and block"
