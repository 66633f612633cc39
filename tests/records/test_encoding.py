"""Batches and exact effects as records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from msgspec import UNSET

from lit_attr.attribution.faithfulness import PERCENT, RANKINGS, Curves
from lit_attr.attribution.neurons import NeuronScores
from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.facts.contrasts import Donor
from lit_attr.facts.rows import Rejected
from lit_attr.records.encoding import batch_record, exact_record, split_finite
from lit_attr.records.files import write_json

FIELDS = "id relation_id prompt subject target_true target_false step tokens roles subject_span true_token "
FIELDS += "false_token true_token_id false_token_id logit_true logit_false logit_diff prob_true prob_false "
FIELDS += "rank_true scores"


def test_a_record_is_as_the_format_says(batch: AttributionBatch, tmp_path: Path):
    write_json(tmp_path / "record.json", batch_record(batch))
    record = json.loads((tmp_path / "record.json").read_text())
    assert {name: value for name, value in record.items() if name != "examples"} == {
        "format": "lit-attr/attributions",
        "version": 2,
        "layers": [0, 1, 2],
        "rule": "gradient",
    }
    for row, (example, contrast) in enumerate(zip(record["examples"], batch.contrasts, strict=True)):
        assert list(example) == FIELDS.split()
        assert example["id"] == contrast.fact.id
        assert example["logit_diff"] == pytest.approx(example["logit_true"] - example["logit_false"])
        width = len(contrast.tokens)
        assert len(example["tokens"]) == len(example["roles"]) == width
        assert list(example["scores"]) == ["mlp"]
        for kind, scores_BLT in (("sum", batch.scores_sum_BLT), ("l2", batch.scores_l2_BLT)):
            assert torch.equal(torch.tensor(example["scores"]["mlp"][kind]), scores_BLT[row, :, :width])


def test_the_donor_is_in_the_record_by_its_id(batch: AttributionBatch):
    first, second = batch.contrasts
    given = first._replace(donor=Donor("other", first.token_ids))
    examples = batch_record(batch._replace(contrasts=(given, second))).examples
    assert [example.donor_id for example in examples] == ["other", UNSET]


def test_a_rule_without_norms_has_no_l2(batch: AttributionBatch, tmp_path: Path):
    write_json(
        tmp_path / "record.json",
        batch_record(batch._replace(scores_l2_BLT=None, components=("block",) * len(batch.layers))),
    )
    record = json.loads((tmp_path / "record.json").read_text())
    assert [list(example["scores"]) for example in record["examples"]] == [["block"], ["block"]]
    assert all(list(example["scores"]["block"]) == ["sum"] for example in record["examples"])


@pytest.mark.parametrize(("place", "has_curves"), [(3, True), (None, False)])
def test_exact_effects_are_as_the_format_says(
    batch: AttributionBatch, tmp_path: Path, place: int | None, has_curves: bool
):
    contrast = batch.contrasts[0]
    width = len(contrast.tokens)
    effects_LT = torch.randn(3, width)
    curves = Curves(torch.tensor([0.5]), *torch.rand(2, 1, len(RANKINGS), len(PERCENT)))
    exact = ExactEffects(
        contrast, place, (0, 1, 2), ("mlp",) * 3, "zero", effects_LT, 1e-5, curves if has_curves else None, None
    )
    write_json(tmp_path / "record.json", exact_record(exact, rule="gradient"))
    record = json.loads((tmp_path / "record.json").read_text())
    assert torch.equal(torch.tensor(record.pop("effects")["mlp"]), effects_LT)
    found = record.pop("curves")
    assert record == {
        "format": "lit-attr/exact",
        "version": 2,
        "layers": [0, 1, 2],
        "rule": "gradient",
        "ablation": "zero",
        "id": contrast.fact.id,
        "step": 0,
        "place": place,
        "is_pilot": False,
        "resolution": 1e-5,
        "refused": None,
    }
    if not has_curves:
        assert found is None
        return
    assert (found["logit_diff"], found["percent"]) == (0.5, [1, 2, 5, 10, 20, 50])
    for name, values_BRP in (("comprehensiveness", curves[1]), ("sufficiency", curves[2])):
        assert list(found[name]) == ["scores", "exact", "random"]
        assert torch.equal(torch.tensor([*found[name].values()]), values_BRP[0])


def test_only_finite_numbers_are_recorded(batch: AttributionBatch):
    batch.scores_sum_BLT[1, 0, 0] = torch.nan
    finite, rejected = split_finite(batch)
    assert finite.contrasts == batch.contrasts[:1]
    assert finite.scores_l2_BLT.shape[0] == 1
    fact = batch.contrasts[1].fact
    reason = "step 1: a score or logit is not finite; dtype bfloat16 or float32 may fix it"
    assert rejected == [Rejected(fact.row, fact.id, reason, step=1)]
    batch.prob_true_B[0] = torch.nan
    finite, rejected = split_finite(batch)
    assert not finite.contrasts
    assert len(rejected) == 2


def test_neurons_are_as_the_format_says(batch: AttributionBatch, tmp_path: Path):
    neurons = NeuronScores(
        torch.tensor([[2, 0], [1, -1]]),
        torch.tensor([[4, 0], [3, -1]]),
        torch.tensor([[127, 3], [9, -1]]),
        torch.tensor([[-0.5, 0.25], [1.5, 0.0]]),
    )
    write_json(tmp_path / "record.json", batch_record(batch._replace(neurons=neurons)))
    examples = json.loads((tmp_path / "record.json").read_text())["examples"]
    assert [list(example) for example in examples] == [[*FIELDS.split(), "neurons"]] * 2
    # An empty place is left out.
    assert [example["neurons"] for example in examples] == [
        [
            {"layer": 2, "token": 4, "neuron": 127, "score": -0.5},
            {"layer": 0, "token": 0, "neuron": 3, "score": 0.25},
        ],
        [{"layer": 1, "token": 3, "neuron": 9, "score": 1.5}],
    ]
