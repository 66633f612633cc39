"""Reports of faithfulness: means over contrasts, and over processes. To be adapted to reports from records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import spawn
from transformers import PreTrainedModel

from lit_attr.attribution.exact_effects import exact_effects_BLT
from lit_attr.attribution.faithfulness import (
    PERCENT,
    RANKINGS,
    Curves,
    FaithfulnessReport,
    faithfulness_curves,
    random_scores_BLT,
)
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import locate


def made_up(count: int) -> Curves:
    generator = torch.Generator().manual_seed(0)
    shapes = (count,), *[(count, len(RANKINGS), len(PERCENT))] * 2
    return Curves(*(torch.rand(shape, generator=generator) for shape in shapes))


def select(curves: Curves, rows: slice) -> Curves:
    return Curves(*(values[rows] for values in curves))


def test_a_report_has_means_over_contrasts():
    curves = made_up(3)
    report = FaithfulnessReport()
    report.update(select(curves, slice(0, 1)))
    report.update(select(curves, slice(1, 3)))
    found = report.compute()
    assert (found["contrasts"], found["percent"]) == (3, [1, 2, 5, 10, 20, 50])
    assert found["logit_diff"] == pytest.approx(sum(curves.logit_diff_B.tolist()) / 3)
    for name, values_BRP in (("comprehensiveness", curves[1]), ("sufficiency", curves[2])):
        assert list(found[name]) == ["scores", "exact", "random"]
        for place, ranking in enumerate(found[name].values()):
            expected = [sum(column) / 3 for column in zip(*values_BRP[:, place].tolist(), strict=True)]
            assert ranking["curve"] == pytest.approx(expected)
            assert ranking["aopc"] == pytest.approx(sum(expected) / 6)
    assert orjson.loads(orjson.dumps(found)) == found


@pytest.mark.filterwarnings("error")
def test_an_empty_report_says_nothing():
    found = FaithfulnessReport().compute()
    assert (found["contrasts"], found["logit_diff"]) == (0, None)
    assert found["sufficiency"]["random"] == {"curve": [None] * 6, "aopc": None}


def join(rank: int, folder: str) -> None:
    """What one of two processes does: the second has all contrasts of the first report and none of the next."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for name, cut in (("none", 0), ("some", 2), ("all", 3)):
        report = FaithfulnessReport()
        mine = select(made_up(3), slice(None, cut) if rank == 0 else slice(cut, None))
        if len(mine.logit_diff_B):
            report.update(mine)
        Path(folder, f"{name}-{rank}.json").write_bytes(orjson.dumps(report.compute()))
    distributed.destroy_process_group()


def test_two_processes_report_what_one_does(tmp_path: Path):
    spawn(join, args=(str(tmp_path),), nprocs=2)
    whole = FaithfulnessReport()
    whole.update(made_up(3))
    expected = whole.compute()
    for path in tmp_path.glob("*.json"):
        found = orjson.loads(path.read_bytes())
        assert flat(found) == pytest.approx(flat(expected))
    assert len([*tmp_path.glob("*.json")]) == 6


def flat(report: Any) -> dict[str, float]:
    return {
        "contrasts": report["contrasts"],
        "logit_diff": report["logit_diff"],
        **{
            f"{name} {ranking} {place}": value
            for name in ("comprehensiveness", "sufficiency")
            for ranking, found in report[name].items()
            for place, value in enumerate([*found["curve"], found["aopc"]])
        },
    }


def test_exact_effects_rank_better_than_chance(demo_model: PreTrainedModel, sample_contrasts: list[Contrast]):
    """And so do the scores, of a model of which they are known to be close to the exact effects."""
    batch, location = collate_contrasts(sample_contrasts[::30]), locate(demo_model)
    scores_BLT = attribute_batch(demo_model, location, batch).scores_sum_BLT
    effects_BLT = exact_effects_BLT(demo_model, location, batch)
    random_BLT = random_scores_BLT(batch.contrasts, len(location.layers))
    curves = faithfulness_curves(demo_model, location, batch, [scores_BLT, effects_BLT, random_BLT])
    # Of up to 100 cells, 1% is one, and to remove that one is what the effects are of.
    few = [row for row, contrast in enumerate(batch.contrasts) if len(contrast.token_ids) * 8 <= 100]
    assert len(few) > 10
    largest_B = effects_BLT.flatten(1).max(1).values
    torch.testing.assert_close(curves.comprehensiveness_BRP[few, 1, 0], largest_B[few], rtol=0, atol=1e-4)
    report = FaithfulnessReport().to("cpu")
    assert isinstance(report, nn.Module)
    report.update(curves)
    found = report.compute()
    removed, kept = found["comprehensiveness"], found["sufficiency"]
    for ranking in ("scores", "exact"):
        assert removed[ranking]["aopc"] - removed["random"]["aopc"] > 0.1 * found["logit_diff"]
        assert kept["random"]["aopc"] - kept[ranking]["aopc"] > 0.1 * found["logit_diff"]
    assert removed["exact"]["aopc"] > removed["scores"]["aopc"]
    assert kept["exact"]["aopc"] < kept["scores"]["aopc"]
