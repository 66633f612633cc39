"""Mean faithfulness curves over contrasts."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
import torch
from transformers import PreTrainedModel

from lit_attr.attribution.comparison import compare_exactly
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.evaluation.validity.faithfulness import faithfulness_report
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import locate
from lit_attr.records.encoding import exact_record
from lit_attr.records.schema import CurvesRecord, Rankings

PERCENT = [1, 2, 5, 10, 20, 50]
RANKINGS = ("scores", "exact", "random")


def made_up(count: int) -> tuple[list[CurvesRecord], np.ndarray, np.ndarray]:
    """Curves, their logit differences [B], and their values [measure, B, ranking, percentage]."""
    generator = np.random.default_rng(0)
    diff_B, values_2BRP = generator.random(count), generator.random((2, count, len(RANKINGS), len(PERCENT)))
    curves = [
        CurvesRecord(diff, PERCENT, Rankings(*removed_RP.tolist()), Rankings(*kept_RP.tolist()))
        for diff, removed_RP, kept_RP in zip(diff_B.tolist(), *values_2BRP, strict=True)
    ]
    return curves, diff_B, values_2BRP


def test_a_report_has_means_over_contrasts():
    curves, diff_B, values_2BRP = made_up(3)
    found = faithfulness_report(curves)
    assert (found["contrasts"], found["percent"], found["ablation"]) == (3, [1, 2, 5, 10, 20, 50], "zero")
    assert found["logit_diff"] == pytest.approx(sum(diff_B) / 3)
    for name, values_BRP in zip(("comprehensiveness", "sufficiency"), values_2BRP, strict=True):
        assert list(found[name]) == ["scores", "exact", "random"]
        for place, ranking in enumerate(found[name].values()):
            expected = [sum(column) / 3 for column in zip(*values_BRP[:, place].tolist(), strict=True)]
            assert ranking["curve"] == pytest.approx(expected)
            assert ranking["aopc"] == pytest.approx(sum(expected) / 6)
    assert orjson.loads(orjson.dumps(found)) == found


@pytest.mark.filterwarnings("error")
def test_without_curves_there_is_no_report():
    assert faithfulness_report([]) is None


def test_exact_effects_rank_better_than_chance(demo_model: PreTrainedModel, sample_contrasts: list[Contrast]):
    """And so do the scores of a model whose scores are known to be close to the exact effects."""
    contrasts, location = sample_contrasts[::30], locate(demo_model)
    compared = [compare_exactly(demo_model, location, contrast, place=0) for contrast in contrasts]
    records = [exact_record(each, rule="gradient") for each in compared]
    # Of up to 100 cells, 1% is one cell, and an exact effect is what is lost without one cell.
    few = [row for row, contrast in enumerate(contrasts) if len(contrast.token_ids) * 8 <= 100]
    assert len(few) > 10
    removed = torch.tensor([records[row].curves.comprehensiveness.exact[0] for row in few])
    largest = torch.stack([compared[row].effects_LT.max() for row in few])
    torch.testing.assert_close(removed, largest, rtol=0, atol=1e-4)
    found = faithfulness_report([record.curves for record in records])
    batch = collate_contrasts(contrasts)
    scored = attribute_batch(demo_model, location, batch)
    diff_B = scored.logit_true_B - scored.logit_false_B
    assert found["logit_diff"] == pytest.approx(diff_B.mean().item(), abs=1e-4)
    removed, kept = found["comprehensiveness"], found["sufficiency"]
    for ranking in ("scores", "exact"):
        assert removed[ranking]["aopc"] - removed["random"]["aopc"] > 0.1 * found["logit_diff"]
        assert kept["random"]["aopc"] - kept[ranking]["aopc"] > 0.1 * found["logit_diff"]
    assert removed["exact"]["aopc"] > removed["scores"]["aopc"]
    assert kept["exact"]["aopc"] < kept["scores"]["aopc"]
