"""A run as a whole: the numbers of its summary, made by the same functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_large_run import make_run
from tabs import Ask, add_batch, asker, client_of, new_run
from tiny_runs import example

from lit_attr.evaluation.run_comparison import compare_runs
from lit_attr.evaluation.summary import summarise
from lit_attr.records.folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of 80 made-up facts, of which one has exact effects of all."""
    top = tmp_path_factory.mktemp("logs")
    make_run(top / "some", 80, 4, 20)
    make_run(top / "every", 80, 4, 80)
    return top


def test_an_unfinished_run_is_summarised_as_it_will_be(runs: Path):
    found = asker(client_of(runs))("overview", run="some")["summary"]
    expected = json.loads(json.dumps(summarise(RunFolder(runs / "some")).summary))
    for profile in (found["profile"], found["known_profile"]):
        for name in ("score_low", "score_high"):
            assert len(profile.pop(name)) == 4
    assert found == expected


def test_means_by_hand(ask: Ask):
    profile = ask("overview", run="one")["summary"]["profile"]
    # Token 2, `first subsequent`, in layer 0: (2 + 0 + 5 + 0) / 4.
    assert profile["mean_score"][0][profile["roles"].index("first subsequent")] == 7 / 4
    assert profile["facts"][profile["roles"].index("first subsequent")] == 4


def test_the_bands_of_mean_scores_are_those_of_the_curves(ask: Ask):
    profile = ask("overview", run="one")["summary"]["profile"]
    place = profile["roles"].index("last")
    mean, error = profile["mean_score"][0][place], profile["standard_error"][0][place]
    assert profile["score_low"][0][place] == pytest.approx(mean - 1.96 * error)
    assert profile["score_high"][0][place] == pytest.approx(mean + 1.96 * error)
    # No fact has a token before the subject, but the first.
    assert profile["score_low"][0][profile["roles"].index("prefix")] is None


def test_a_written_summary_is_shown_until_records_change(run: Path, ask: Ask):
    summary = summarise(RunFolder(run)).summary
    RunFolder(run).write_summary({**summary, "median_logit_diff": 123.0})
    ask("run", run="one")
    assert ask("overview", run="one")["summary"]["median_logit_diff"] == 123.0
    add_batch(run, example(0, [[0.0, 0, 0, 0], [0, 0, 0, 0]], logit_diff=-9.0))
    ask("run", run="one")
    # The median of -9, -2, 0.5, 1.5 and 3.
    assert ask("overview", run="one")["summary"]["median_logit_diff"] == 0.5


def test_two_runs_have_the_figures_of_the_comparison(runs: Path):
    found = asker(client_of(runs))("pair", run="some", other="every", component="mlp")
    expected = compare_runs(runs / "some", runs / "every", component="mlp")
    assert found["comparison"] == json.loads(json.dumps(expected))


def test_answers_that_changed(run: Path):
    other = new_run(run.parent / "two")
    numbers = {"prob_true": 0.5, "rank_true": 0}
    add_batch(
        other,
        # 3: preferred as before, 1: preferred now and known now, 10: known now, "text": other tokens.
        example(3, [[0.0] * 4] * 2, logit_diff=9.0, **numbers),
        example(1, [[0.0] * 4] * 2, logit_diff=1.0, **numbers),
        example(10, [[0.0] * 4] * 2, logit_diff=0.5, **numbers),
        example("text", [[0.0] * 4] * 2, logit_diff=-3.0, tokens=["A", "B", " is", " in"], **numbers),
        example(99, [[0.0] * 4] * 2, logit_diff=-3.0, **numbers),
    )
    ask = asker(client_of(run.parent))
    found = ask("pair", run="one", other="two")
    assert [(row["id"], row["logit_diff"], row["rank_true"]) for row in found["changed"]] == [
        (1, [-2.0, 1.0], [7, 0]),
        (10, [0.5, 0.5], [1, 0]),
    ]
    answers = found["comparison"]["answers"]
    assert (answers["preferred_changed"], answers["known_changed"]) == (1, 2)
