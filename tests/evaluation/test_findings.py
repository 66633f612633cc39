"""What the records of a run show beside its summary, on made-up numbers."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from lit_attr.evaluation.summary import summarise
from lit_attr.facts.contrasts import order_key, random_order
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import ComponentScores, Example


@pytest.fixture
def examples(example: Example) -> list[Example]:
    """Twenty-four contrasts with logit differences -12 to 11, every third of relation P1, the others of P2."""
    scores_LT = example.scores["mlp"].sum
    return [
        msgspec.structs.replace(
            example,
            id=row,
            logit_diff=float(row - 12),
            relation_id=f"P{1 if row % 3 == 0 else 2}",
            scores={"mlp": ComponentScores(scores_LT * 0 + row)},
        )
        for row in range(24)
    ]


@pytest.fixture
def folder(make_run: Callable, examples: list[Example]) -> RunFolder:
    return make_run(examples)


def ids(records: list[dict]) -> list[int | str]:
    return [record["id"] for record in records]


def test_median_and_extremes(folder: RunFolder):
    findings = summarise(folder, heatmap_ids=[5, 99], largest=3)
    assert findings.summary["median_logit_diff"] == -0.5
    assert ids(findings.strongest) == list(range(23, 13, -1))
    assert ids(findings.failures) == list(range(10))
    assert ids(findings.asked_for) == [5]
    assert findings.not_found == [99]
    assert ids(findings.largest) == [0, 1, 23]


def test_contrasts_are_as_load_attributions_yields_them(folder: RunFolder):
    (record,) = summarise(folder, heatmap_ids=[5]).asked_for
    assert (record["layers"], record["rule"]) == ([0, 1, 2], "gradient")
    assert (record["scores"]["mlp"]["sum"] == 5).all()


def test_all_steps_of_a_fact_asked_for_are_found(make_run: Callable, example: Example):
    steps = [msgspec.structs.replace(example, id="a", step=step) for step in (1, 0)]
    same = msgspec.structs.replace(example, id="b", false_token_id=example.true_token_id)
    findings = summarise(make_run([*steps, same]), heatmap_ids=["a", "b", "c", 7])
    assert [(record["id"], record["step"]) for record in findings.asked_for] == [("a", 0), ("a", 1)]
    # Scores of a token against itself are all 0.
    assert findings.not_found == [7, "b", "c"]


@pytest.mark.parametrize("model", [{}, {"sample_seed": 0}, {"sample_seed": 3}])
def test_spread_contrasts_come_first_in_the_runs_random_order(
    make_run: Callable, examples: list[Example], model: dict
):
    same = msgspec.structs.replace(examples[0], id=24, false_token_id=examples[0].true_token_id)
    folder = make_run([*examples, same], model=model)
    order = random_order([(row, 0) for row in range(24)], model.get("sample_seed", 0))
    for count in (0, 1, 7, 24, 30):
        assert ids(summarise(folder, spread=count).spread) == [contrast_id for contrast_id, _ in order[:count]]
    assert order_key((24, 0), 0) != order_key((24, 0), 3)


def test_each_relation_has_a_profile(folder: RunFolder):
    relations = summarise(folder).components["mlp"].relations
    last = MEAN_ROLES.index("last")
    assert {name: profile["contrasts"][last] for name, profile in relations.items()} == {"P1": 8, "P2": 16}
    assert relations["P1"]["mean_score"][0][last] == pytest.approx(sum(range(0, 24, 3)) / 8)


def test_the_largest_relations_have_a_profile(make_run: Callable, example: Example):
    counts = {f"P{name}": name for name in range(1, 9)}
    examples = [
        msgspec.structs.replace(example, id=f"{relation} {row}", relation_id=relation)
        for relation, count in counts.items()
        for row in range(count)
    ]
    examples.append(msgspec.structs.replace(example, id="none", relation_id=""))
    assert list(summarise(make_run(examples)).components["mlp"].relations) == ["P3", "P4", "P5", "P6", "P7", "P8"]
    only = [each for each in examples if each.relation_id == "P4"]
    assert summarise(make_run(only, name="only")).components["mlp"].relations == {}
