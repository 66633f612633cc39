"""One fact, against records written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from tabs import FIRST, SECOND, Ask, add_batch, asker, client_of, new_run
from tiny_runs import example


def test_a_fact_is_its_record(ask: Ask):
    found = ask("fact", run="one", id=3)
    assert found["scores"] == FIRST and found["effects"] == [[0, 1, 2, 4], [0, 3, 0, 5]]
    assert found["tokens"] == ["A", " B", " is", " in"] and found["subject_span"] == [0, 2]
    # As in the pictures, the first token does not set the scale.
    assert (found["scale"], found["effects_scale"]) == (8, 5)
    assert found["is_exact"] is None and not found["is_pilot"] and found["neurons"] == []


def test_a_fact_without_exact_effects(ask: Ask):
    found = ask("fact", run="one", id=1)
    assert found["scores"] == SECOND and found["effects"] is None and found["error"] is None


def test_neighbours_follow_the_table(ask: Ask):
    around = ask("fact", run="one", id=3, sort="logit_diff", order="desc")["around"]
    assert around == {
        "place": 2,
        "total": 4,
        "previous": {"id": "text", "step": 0},
        "next": {"id": 10, "step": 0},
    }
    around = ask("fact", run="one", id=3, known="no")["around"]
    assert around == {"place": None, "total": 2, "previous": None, "next": None}


def test_an_id_that_is_text(ask: Ask):
    assert ask("fact", run="one", id='"text"')["id"] == "text"
    assert "no such fact" in ask("fact", status=404, run="one", id='"3"')


def test_several_components_are_chosen_from(tmp_path: Path):
    run = new_run(tmp_path / "both")
    scores = {"mlp": {"sum": FIRST}, "attention": {"sum": SECOND}}
    add_batch(run, example(1, FIRST, scores=scores))
    ask = asker(client_of(tmp_path))
    assert ask("run", run="both")["components"] == ["mlp", "attention"]
    assert ask("fact", run="both", id=1, component="attention")["scores"] == SECOND
    assert ask("facts", run="both", component="attention")["rows"][0]["largest"]["score"] == -6
    assert ask("overview", run="both", component="attention")["summary"]["profile"]["component"] == "attention"
    assert "scores of mlp, attention" in ask("facts", status=404, run="both", component="block")


def test_neurons_come_by_size(tmp_path: Path):
    run = new_run(tmp_path / "neurons")
    neurons = [{"layer": 0, "token": 1, "neuron": 5, "score": size} for size in (0.5, -2.0, 1.0)]
    add_batch(run, example(1, FIRST, neurons=neurons))
    found = asker(client_of(tmp_path))("fact", run="neurons", id=1)["neurons"]
    assert [each["score"] for each in found] == pytest.approx([-2.0, 1.0, 0.5])
