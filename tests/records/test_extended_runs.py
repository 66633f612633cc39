"""A run with a larger limit extends the folder of an earlier run over the first of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import writing_trainer

from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.errors import UserError
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.reading import load_attributions

ROWS = [*open_rows(SAMPLE)][:40]
BROKEN = {**ROWS[0], "subject": "not in the prompt"}


def run(folder: Path, limit: int | None, rows: list[Any] | None = None, **settings: Any) -> dict[str, Any]:
    trainer = writing_trainer(folder, max_heatmaps=0)
    data = CounterfactDataModule(ROWS if rows is None else rows, limit=limit, batch_size=8)
    module = AttributionModule(**{"verify": 6, **settings})
    trainer.predict(module, datamodule=data, return_predictions=False)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    return found


class Resampling(AttributionModule):
    """Asks for donors."""

    def data_requirements(self) -> DataRequirements:
        return super().data_requirements()._replace(ablation="resample")


def donors(folder: Path) -> dict[Any, Any]:
    return {record["id"]: record["donor_id"] for record in load_attributions(folder)}


def records(folder: Path) -> Iterator[dict[str, Any]]:
    for record in sorted(load_attributions(folder), key=lambda record: record["id"]):
        scores = {name: scores_LT.tolist() for name, scores_LT in record.pop("scores")["mlp"].items()}
        yield {**record, **scores}


def test_the_records_are_those_of_a_run_over_all_rows(tmp_path: Path):
    run(tmp_path / "out", 10)
    kept = {path: path.read_bytes() for path in tmp_path.glob("out/*/*.json")}
    for limit in (10, 25, None):
        extended = run(tmp_path / "out", limit)
        whole = run(tmp_path / f"whole-{limit}", limit)
        for ours, theirs in zip(records(tmp_path / "out"), records(tmp_path / f"whole-{limit}"), strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                if name in ("sum", "l2") or isinstance(value, float):
                    # The batches are others, and so are the last digits.
                    np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-5)
                else:
                    assert value == theirs[name]
        assert extended["contrasts"] == whole["contrasts"] == len([*records(tmp_path / "out")])
    assert extended["contrasts"] == len(ROWS)
    assert {path: path.read_bytes() for path in kept} == kept


def test_the_manifest_is_that_of_the_larger_run(tmp_path: Path):
    run(tmp_path / "out", 10)
    name = json.loads((tmp_path / "out" / "manifest.json").read_bytes())["run"]
    run(tmp_path / "out", 30)
    run(tmp_path / "whole", 30)
    manifest, whole = (
        json.loads((tmp_path / folder / "manifest.json").read_bytes()) for folder in ("out", "whole")
    )
    assert manifest["data"] == whole["data"]
    assert manifest["run"] == name != whole["run"]


def test_exact_effects_stay_and_count(tmp_path: Path):
    first = run(tmp_path / "out", 12)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("out/exact/*.json")}
    assert first["agreement"]["contrasts"] == len(kept) == 6
    run(tmp_path / "whole", None)
    sample = {path.name for path in tmp_path.glob("whole/exact/*.json")}
    extended = run(tmp_path / "out", None)
    found = {path.name: path.read_bytes() for path in tmp_path.glob("out/exact/*.json")}
    # The sample of all rows is complete, and nothing of the earlier one is made anew or lost.
    assert set(found) == set(kept) | sample
    assert {name: found[name] for name in kept} == kept
    assert all(json.loads(content)["place"] < 6 for content in found.values())
    assert extended["agreement"]["contrasts"] == len(found)
    assert (first["agreement"]["sample"], extended["agreement"]["sample"]) == (
        "random",
        "random, of an extended run",
    )


def test_an_interrupted_extension_is_completed(tmp_path: Path):
    run(tmp_path / "out", 10)
    run(tmp_path / "out", 30)
    for path in sorted(tmp_path.glob("out/batches/*.json"))[1:]:
        path.unlink()
    assert run(tmp_path / "out", 30)["contrasts"] == 30


def test_refused_rows_are_those_of_the_larger_run(tmp_path: Path):
    rows = [*ROWS[:5], BROKEN, *ROWS[5:9], BROKEN, *ROWS[9:]]
    rows = [{**row, "id": place} for place, row in enumerate(rows)]
    assert run(tmp_path / "out", 8, rows)["rejected"] == 1
    assert run(tmp_path / "out", 20, rows)["rejected"] == 2
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [5, 10]


def test_donors_stay_when_a_run_is_resumed_and_extended(tmp_path: Path):
    """The rows beyond the limit are donors of those within."""

    def resample(folder: str, limit: int | None) -> dict[Any, Any]:
        data = CounterfactDataModule(ROWS, limit=limit, batch_size=8)
        trainer = writing_trainer(tmp_path / folder, max_heatmaps=0)
        trainer.predict(Resampling(verify=4), datamodule=data, return_predictions=False)
        return donors(tmp_path / folder)

    first = resample("out", 10)
    assert any(donor >= 10 for donor in first.values())
    (tmp_path / "out" / "summary.json").unlink()
    next(tmp_path.glob("out/batches/*.json")).unlink()
    assert resample("out", 10) == first
    extended, whole = resample("out", None), resample("whole", None)
    assert extended == whole and extended.items() >= first.items()
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == set(range(40)) - extended.keys() != set()
    assert all(json.loads(line)["reason"].startswith("no donor: ") for line in lines)
    compared = [json.loads(path.read_bytes())["id"] for path in tmp_path.glob("out/exact/*.json")]
    assert compared and extended.keys() >= {*compared}


@pytest.mark.parametrize(
    ("before", "now", "rows", "settings", "named"),
    [
        (20, 10, ROWS, {}, "data.limit 20, this run has 10"),
        (None, 20, ROWS, {}, "data.limit None, this run has 20"),
        (10, 20, [*ROWS[1:], ROWS[0]], {}, "data.content "),
        (10, 20, [{**ROWS[0], "target_false": " nowhere"}, *ROWS[1:]], {}, "data.content "),
        (10, 20, ROWS, {"rule": "linearised"}, "model.rule 'gradient', this run has 'linearised'"),
        (10, 20, ROWS, {"step": "all"}, "data.step 'divergence', this run has 'all'"),
    ],
)
def test_a_smaller_limit_other_rows_and_other_settings_are_refused(
    tmp_path: Path, before: int | None, now: int | None, rows: list[Any], settings: dict[str, Any], named: str
):
    run(tmp_path, before)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=rf"output_dir: .* was written with {named}"):
        run(tmp_path, now, rows, **settings)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
