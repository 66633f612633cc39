"""The neurons of known facts, counted from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from lit_attr.evaluation.summary import summarise
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import Example, Neuron


@pytest.fixture
def listing(example: Example) -> Callable[..., Example]:
    """Makes a contrast that lists neurons, each a layer, token, neuron and score."""

    def make(
        contrast_id: int, relation: str, neurons: Sequence[tuple[int, int, int, float]], rank_true: int = 0
    ) -> Example:
        listed = [Neuron(*each) for each in neurons]
        changes = {"id": contrast_id, "relation_id": relation, "rank_true": rank_true, "neurons": listed}
        return msgspec.structs.replace(example, **changes)

    return make


def neuron(layer: int, index: int, contrasts: int, share: float, other_share: float | None, mean: float) -> dict:
    return {
        "layer": layer,
        "neuron": index,
        "contrasts": contrasts,
        "share": share,
        "other_share": other_share,
        "mean_score": mean,
    }


def test_neurons_are_counted_by_relation(make_run: Callable[..., RunFolder], listing: Callable[..., Example]):
    """By hand. Of neuron 5 of layer 1, the first contrast has two tokens: 2 + 1, the second one: 0.5."""
    found = summarise(
        make_run(
            [
                listing(0, "P17", [(1, 0, 5, 2.0), (1, 3, 5, 1.0), (2, 0, 7, -0.5)]),
                listing(1, "P17", [(2, 1, 7, -1.5), (1, 2, 5, 0.5)]),
                listing(2, "P17", [(0, 0, 9, 8.0)], rank_true=1),
                listing(3, "P36", [(2, 1, 7, 0.25), (0, 0, 5, 4.0)]),
                listing(4, "", []),
            ]
        )
    ).summary["neurons"]
    assert found == {
        "known": 4,
        "relations": [
            {"relation": "", "known": 1, "neurons": []},
            {
                "relation": "P17",
                "known": 2,
                "neurons": [neuron(1, 5, 2, 1.0, 0.0, 1.75), neuron(2, 7, 2, 1.0, 0.5, -1.0)],
            },
            {
                "relation": "P36",
                "known": 1,
                "neurons": [neuron(0, 5, 1, 1.0, 0.0, 4.0), neuron(2, 7, 1, 1.0, 2 / 3, 0.25)],
            },
        ],
    }


def test_one_relation_has_no_others(make_run: Callable[..., RunFolder], listing: Callable[..., Example]):
    found = summarise(make_run([listing(0, "P17", [(1, 0, 5, 2.0)])])).summary["neurons"]
    assert found["relations"][0]["neurons"] == [neuron(1, 5, 1, 1.0, None, 2.0)]


def test_a_run_without_neurons_has_none(make_run: Callable[..., RunFolder], example: Example):
    assert summarise(make_run([example])).summary["neurons"] is None


def test_the_order_of_the_files_changes_nothing(
    make_run: Callable[..., RunFolder], listing: Callable[..., Example]
):
    """Also where a sum in another order would round otherwise."""
    generator = np.random.default_rng(0)
    scores = (generator.standard_normal(40) * 10.0 ** generator.integers(-8, 5, 40)).astype(np.float32).tolist()
    examples = [
        listing(contrast_id, "P17", [(0, 0, contrast_id % 2, score)]) for contrast_id, score in enumerate(scores)
    ]
    first = summarise(make_run(examples)).summary["neurons"]
    second = summarise(make_run(examples[::-1], sizes=[7, 33], name="other")).summary["neurons"]
    assert first == second
    (relation,) = first["relations"]
    assert [each["neuron"] for each in relation["neurons"]] in ([0, 1], [1, 0])
    for each in relation["neurons"]:
        wanted = np.array(scores[each["neuron"] :: 2], np.float64)
        assert each["mean_score"] == pytest.approx(wanted.mean(), rel=1e-12)
        assert each["contrasts"] == 20


def test_the_most_frequent_are_listed(make_run: Callable[..., RunFolder], listing: Callable[..., Example]):
    """Neuron i is in the contrasts 0 to i; of equally frequent ones, the larger mean comes first."""
    examples = [
        listing(contrast_id, "P17", [(0, 0, index, 1.0) for index in range(contrast_id, 12)])
        for contrast_id in range(12)
    ]
    examples.append(listing(12, "P17", [(1, 0, 3, -5.0)] * 2))
    found = summarise(make_run(examples)).summary["neurons"]["relations"][0]["neurons"]
    assert [(each["neuron"], each["contrasts"]) for each in found] == [
        (index, index + 1) for index in range(11, 1, -1)
    ]
