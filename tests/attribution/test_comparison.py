"""The comparison of one contrast's scores with its exact effects."""

from __future__ import annotations

import pytest
import torch
from architectures import random_contrasts, tiny_model
from transformers import PreTrainedModel

from lit_attr import errors
from lit_attr.attribution import comparison
from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.comparison import compare_exactly
from lit_attr.attribution.exact.effects import ResolvedEffects, exact_effects_BLT
from lit_attr.attribution.faithfulness import faithfulness_curves, random_scores_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.scoring import Scoring
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import Location, locate


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("gpt2")


@pytest.fixture
def location(model: PreTrainedModel) -> Location:
    return locate(model, component="attention")


@pytest.mark.parametrize("name", ["gradient", "norm-secant", "exact"])
def test_compares_the_contrast_alone(model: PreTrainedModel, location: Location, name: RuleName):
    (contrast,) = random_contrasts((6,))
    rule = find_rule(model, location, name)
    found = compare_exactly(model, location, contrast, Scoring(rule), place=4)
    assert (found.contrast, found.place, found.layers, found.components) == (
        contrast,
        4,
        (0, 1),
        ("attention",) * 2,
    )
    assert found.refused is None
    alone = collate_contrasts([contrast])
    effects_BLT = exact_effects_BLT(model, location, alone)
    assert torch.equal(found.effects_LT, effects_BLT[0])
    scores_BLT = attribute_batch(model, location, alone, rule=rule).scores_sum_BLT
    rankings = [scores_BLT, effects_BLT, random_scores_BLT([contrast], 2)]
    for one, other in zip(found.curves, faithfulness_curves(model, location, alone, rankings), strict=True):
        assert torch.equal(one, other)


def test_half_precision_gives_float32_effects(model: PreTrainedModel, location: Location):
    (contrast,) = random_contrasts((3,))
    found = compare_exactly(model.bfloat16(), location, contrast)
    assert found.effects_LT.dtype == torch.float32 and found.effects_LT.device.type == "cpu"
    assert found.place is None


@pytest.mark.parametrize(
    ("broken", "refused"),
    [
        ("resolved_effects", "its exact effects are not finite; the dtype float32 may fix it"),
        ("attribute_batch", "its scores or logits are not finite; the dtype float32 may fix it"),
    ],
)
def test_refuses_numbers_that_are_not_finite(
    model: PreTrainedModel, location: Location, broken: str, refused: str, monkeypatch: pytest.MonkeyPatch
):
    (contrast,) = random_contrasts((4,))
    if broken == "resolved_effects":
        values = ResolvedEffects(torch.full((1, 2, 4), torch.inf), torch.zeros(1))
        monkeypatch.setattr(comparison, broken, lambda *_, **__: values)
    else:
        scores = attribute_batch(model, location, collate_contrasts([contrast]))
        scores.scores_sum_BLT[0, 1, 2] = torch.nan
        monkeypatch.setattr(comparison, broken, lambda *_, **__: scores)
    found = compare_exactly(model, location, contrast, place=0)
    assert found.refused == refused
    assert found.curves is None and found.effects_LT.tolist() == [[0] * 4] * 2


def test_exact_effects_survive_curves_that_fail(
    model: PreTrainedModel,
    location: Location,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def fail(*_: object) -> None:
        raise RuntimeError("no curves\ntoday")

    monkeypatch.setattr(errors, "_logged", set())
    monkeypatch.setattr(comparison, "faithfulness_curves", fail)
    for contrast in random_contrasts((4, 5)):
        found = compare_exactly(model, location, contrast)
        assert found.curves is None and found.refused is None and found.effects_LT.any()
    assert [record.getMessage() for record in caplog.records] == [
        "there are no faithfulness curves (no curves today)"
    ]
