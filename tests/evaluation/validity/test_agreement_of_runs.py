"""Agreement in the summary of runs with a Trainer: how much is compared, and what happens where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from project import writing_trainer

from lit_attr.attribution import comparison
from lit_attr.attribution.comparison import compare_exactly
from lit_attr.attribution.exact.effects import ResolvedEffects, resolved_effects
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.evaluation.validity.agreement import Compared, agreement_report
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.folder import RunFolder


def run(folder: Path, verify: int = 16) -> dict[str, Any]:
    trainer = writing_trainer(folder, max_heatmaps=0)
    data = CounterfactDataModule([*open_rows(SAMPLE)][::16], batch_size=6)
    trainer.predict(AttributionModule(verify=verify), datamodule=data, return_predictions=False)
    summary: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
    return summary


def test_a_run_compares_as_many_as_asked_for(tmp_path: Path):
    """And keeps the comparison when a second run has nothing left to do."""
    agreement = run(tmp_path, verify=5)["agreement"]
    assert (agreement["contrasts"], agreement["sample"]) == (5, "random")
    assert set(agreement["by_role"]) == set(MEAN_ROLES)
    assert 0 < agreement["pearson"] < 1
    assert run(tmp_path, verify=5)["agreement"] == agreement
    assert run(tmp_path / "without", verify=0)["agreement"] is None


@pytest.mark.slow
def test_all_contrasts_compared_are_compared_with_their_own_effects(
    tmp_path: Path, sample_contrasts: list[Contrast]
):
    agreement = run(tmp_path, verify=1000)["agreement"]
    module = AttributionModule()
    module.configure_model()
    compared = []
    for contrast in sample_contrasts[::16]:
        scores_BLT = module.predict_step(collate_contrasts([contrast]), 0).scores_sum_BLT
        effects_LT = compare_exactly(module.language_model, module.location, contrast).effects_LT
        values = (values_LT.double().numpy() for values_LT in (scores_BLT[0], effects_LT))
        compared.append(Compared(*values, contrast.roles, contrast.subject_span, contrast.fact.id))
    assert agreement["contrasts"] == 30
    expected = agreement_report(range(8), compared)
    assert agreement["pearson"] == pytest.approx(expected["pearson"], abs=1e-4)


def test_a_run_continues_where_there_are_no_exact_effects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise NotImplementedError("no such thing")

    monkeypatch.setattr(comparison, "resolved_effects", fail)
    summary = run(tmp_path)
    assert (summary["contrasts"], summary["agreement"]) == (30, None)
    assert "verify: this model's exact effects cannot be computed (no such thing); 0 leaves" in caplog.text


def test_what_is_not_finite_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """One contrast's effects are not finite, and no curve can be computed."""

    def with_nan(model: Any, location: Any, batch: Any, replacement_BLTH: Any) -> ResolvedEffects:
        found = resolved_effects(model, location, batch, replacement_BLTH)
        found.effects_BLT[[contrast.fact.id == 0 for contrast in batch.contrasts]] = torch.nan
        return found

    def fail(*_: Any) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(comparison, "resolved_effects", with_nan)
    monkeypatch.setattr(comparison, "faithfulness_curves", fail)
    agreement = run(tmp_path, verify=1000)["agreement"]
    assert agreement["contrasts"] == 29 and 0 < agreement["pearson"] < 1
    assert "faithfulness" not in agreement
    refused = {record.id: record.refused for _, record in RunFolder(tmp_path).read_exact() if record.refused}
    assert refused == {0: "its exact effects are not finite; the dtype float32 may fix it"}
    assert "there are no faithfulness curves (none left)" in caplog.text


@pytest.mark.slow
def test_a_resumed_run_keeps_the_larger_comparison(tmp_path: Path):
    summary = run(tmp_path, verify=5)
    min(tmp_path.glob("batches/*.json")).unlink()
    again = run(tmp_path, verify=2)
    assert again["contrasts"] == summary["contrasts"]
    assert again["agreement"] == summary["agreement"]
    assert again["median_logit_diff"] == summary["median_logit_diff"]
    for path in tmp_path.glob("batches/*.json"):
        path.unlink()
    assert run(tmp_path, verify=1000)["agreement"]["contrasts"] == 30
