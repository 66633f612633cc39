"""Agreement of scores and exact effects, on numbers made up for it and on the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import orjson
import pytest
import torch
from project import writing_trainer
from torch import Tensor, nn

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.evaluation.agreement import Correlation, TrustReport, verdict
from lit_attr.facts.contrasts import ROLES, Contrast, collate_contrasts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule


@pytest.fixture
def contrasts(sample_contrasts: list[Contrast]) -> list[Contrast]:
    return [sample_contrasts[0], sample_contrasts[200], sample_contrasts[-1]]


def cells(contrasts: list[Contrast], values_BLT: Tensor, layer: int | None = None) -> np.ndarray:
    """The values at real tokens, by a loop."""
    return np.array(
        [
            values_BLT[row, place, token].item()
            for row, contrast in enumerate(contrasts)
            for place in (range(values_BLT.shape[1]) if layer is None else [layer])
            for token in range(len(contrast.tokens))
        ]
    )


def pearson(ours: np.ndarray, exact: np.ndarray) -> float:
    return float(np.corrcoef(ours, exact)[0, 1])


def spearman(ours: np.ndarray, exact: np.ndarray) -> float:
    """There are no ties in random numbers."""
    return pearson(ours.argsort().argsort(), exact.argsort().argsort())


def test_agrees_with_another_library_over_all_cells_and_by_layer(contrasts: list[Contrast]):
    torch.manual_seed(0)
    width = max(len(contrast.tokens) for contrast in contrasts)
    effects_BLT = torch.randn(3, 2, width)
    scores_BLT = effects_BLT + torch.tensor([0.3, 2.0])[:, None] * torch.randn(3, 2, width)
    report = TrustReport([4, 9])
    for row in range(3):  # one by one: counts add up
        report.update(contrasts[row : row + 1], scores_BLT[row : row + 1], effects_BLT[row : row + 1])
    found = report.compute()
    assert found["contrasts"] == 3
    ours, exact = cells(contrasts, scores_BLT), cells(contrasts, effects_BLT)
    assert found["pearson"] == pytest.approx(pearson(ours, exact), abs=1e-6)
    for place, layer in enumerate(("4", "9")):
        expected = pearson(cells(contrasts, scores_BLT, place), cells(contrasts, effects_BLT, place))
        assert found["by_layer"][layer]["pearson"] == pytest.approx(expected, abs=1e-6)
    assert found["same_sign"] == pytest.approx(np.mean(np.sign(ours) == np.sign(exact)))
    for agreement, place, top in (
        (found, None, 10),
        (found["by_layer"]["4"], 0, 3),
        (found["by_layer"]["9"], 1, 3),
    ):
        pairs = [
            [cells([contrast], values_BLT[[row]], place) for values_BLT in (scores_BLT, effects_BLT)]
            for row, contrast in enumerate(contrasts)
        ]
        assert agreement["spearman"] == pytest.approx(np.mean([spearman(*pair) for pair in pairs]), abs=1e-6)
        overlaps = [
            len(set(np.argsort(-np.abs(mine))[:top]) & set(np.argsort(-np.abs(true))[:top])) / top
            for mine, true in pairs
            if len(mine) > top
        ]
        assert len(overlaps) > 0
        assert agreement[f"top_{top}_overlap"] == pytest.approx(np.mean(overlaps))
    last = [[row, len(contrast.tokens) - 1] for row, contrast in enumerate(contrasts)]
    at_last = [
        np.array([values_BLT[row, :, at].tolist() for row, at in last]).ravel()
        for values_BLT in (scores_BLT, effects_BLT)
    ]
    assert found["by_role"]["last"]["pearson"] == pytest.approx(pearson(*at_last), abs=1e-6)


def test_says_nothing_of_what_has_too_few_cells(contrasts: list[Contrast]):
    report = TrustReport([0])
    empty = report.compute()
    assert (empty["contrasts"], empty["pearson"]) == (0, None)
    report.update(contrasts[:1], torch.zeros(1, 1, 20), torch.zeros(1, 1, 20))
    assert report.compute()["pearson"] is None
    orjson.dumps(report.compute())


def test_the_verdict_names_poor_layers():
    found = {"0": 0.41, "1": 0.9, "2": None}
    report: dict[str, Any] = {"contrasts": 16, "pearson": 0.7}
    report["by_layer"] = {layer: {"pearson": pearson} for layer, pearson in found.items()}
    assert verdict(report) == (
        "16 contrasts compared with their exact effects (zero ablation): r = 0.70 over all layers and tokens; "
        "do not rely on the scores of layer 0 (r = 0.41)"
    )
    report["by_layer"] = {"0": {"pearson": 0.9}}
    assert verdict(report).endswith("r = 0.70 over all layers and tokens")
    assert verdict({**report, "pearson": 0.2}).endswith("do not compare scores across layers")


def run(folder: Path, module: pl.LightningModule | None = None, **writer: Any) -> dict[str, Any]:
    trainer = writing_trainer(folder, max_heatmaps=0, **writer)
    data = CounterfactDataModule([*open_rows(SAMPLE)][::16], batch_size=6)
    trainer.predict(module or AttributionModule(), datamodule=data, return_predictions=False)
    summary: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
    return summary


def test_a_run_compares_as_many_as_asked_for(tmp_path: Path):
    """And keeps the comparison when a second run has nothing left to do."""
    trust = run(tmp_path, verify=5)["trust"]
    assert trust["contrasts"] == 5
    assert set(trust["by_role"]) == set(ROLES)
    assert 0 < trust["pearson"] < 1
    assert run(tmp_path, verify=5)["trust"] == trust
    assert run(tmp_path / "without", verify=0)["trust"] is None


def test_all_contrasts_compared_are_compared_with_their_own_effects(
    tmp_path: Path, sample_contrasts: list[Contrast]
):
    trust = run(tmp_path, verify=1000)["trust"]
    module = AttributionModule()
    expected = TrustReport(range(8))
    for contrast in sample_contrasts[::16]:
        batch = collate_contrasts([contrast])
        scores = module.predict_step(batch, 0).scores_sum_BLT
        expected.update([contrast], scores, module.exact_effects_BLT(batch))
    assert trust["contrasts"] == 30
    assert trust["pearson"] == pytest.approx(expected.compute()["pearson"], abs=1e-4)


class Broken(AttributionModule):
    def exact_effects_BLT(self, batch: Any) -> Tensor:
        raise NotImplementedError("no such thing")


def test_a_run_goes_on_where_there_are_no_exact_effects(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert run(tmp_path, Broken())["trust"] is None
    assert "writer.verify: there are no exact effects of this model (no such thing); 0 leaves" in caplog.text


class NotFinite(AttributionModule):
    """One contrast's effects cannot be told, nor any curve."""

    def exact_effects_BLT(self, batch: Any) -> Tensor:
        effects_BLT = super().exact_effects_BLT(batch)
        effects_BLT[[contrast.fact.id == 0 for contrast in batch.contrasts]] = torch.nan
        return effects_BLT

    def faithfulness_curves(self, batch: Any, rankings: Any) -> Any:
        raise MemoryError("none left")


def test_what_is_not_finite_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trust = run(tmp_path, NotFinite(), verify=1000)["trust"]
    assert trust["contrasts"] == 29 and 0 < trust["pearson"] < 1
    assert "faithfulness" not in trust
    assert "writer.verify: some exact effects are not finite" in caplog.text
    assert "writer.verify: there are no curves of faithfulness (none left)" in caplog.text


def test_a_run_that_goes_on_keeps_the_larger_comparison(tmp_path: Path):
    summary = run(tmp_path, verify=5)
    min(tmp_path.glob("batches/*.json")).unlink()
    again = run(tmp_path, verify=2)
    assert again["resumed"] < again["contrasts"] == summary["contrasts"]
    assert again["trust"] == summary["trust"]
    assert again["median_logit_diff"] == summary["median_logit_diff"]
    for path in tmp_path.glob("batches/*.json"):
        path.unlink()
    assert run(tmp_path, verify=1000)["trust"]["contrasts"] == 30


def test_constant_values_have_no_correlation():
    correlation = Correlation()
    correlation.update(torch.full((30,), 0.1, dtype=torch.float64), torch.randn(30, dtype=torch.float64))
    assert correlation.compute().isnan()


def test_moves_between_devices_as_a_module():
    assert isinstance(TrustReport([0]).to("cpu"), nn.Module)
