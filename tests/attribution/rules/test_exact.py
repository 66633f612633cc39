"""The rule `exact` from the command line: records, pictures, resumption and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonschema import validate
from runs import predict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_attr
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.cli import main
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.loading import DEMO_MODEL, load_model
from lit_attr.models.location import locate
from lit_attr.records.reading import load_attributions

ROWS = 30
WORDS = ["--model.rule", "exact", "--data.limit", ROWS, "--data.max_tokens", 60, "--model.verify", 4]


def scores(folder: Path) -> dict[int, np.ndarray]:
    records = [*load_attributions(folder)]
    assert [*sorted(record["id"] for record in records)] == [*range(ROWS)]
    assert all(record["rule"] == "exact" and {*record["scores"]["mlp"]} == {"sum"} for record in records)
    return {record["id"]: record["scores"]["mlp"]["sum"] for record in records}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact")
    main(predict(folder, *WORDS, "--writer.max_heatmaps", 2))
    return folder


def test_writes_exact_effects(whole: Path, sample_contrasts: list[Contrast]):
    found = scores(whole)
    model = load_model(DEMO_MODEL)
    location = locate(model)
    for contrast in sample_contrasts[:ROWS:7]:
        expected_LT = exact_effects_BLT(model, location, collate_contrasts([contrast]))[0].numpy()
        np.testing.assert_allclose(found[contrast.fact.id], expected_LT, atol=1e-5 * abs(expected_LT).max())
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["agreement"] is None, "exact effects are not compared with themselves"
    assert json.loads((whole / "manifest.json").read_text())["model"]["rule"] == "exact"
    schema = json.loads((Path(lit_attr.__file__).parent / "assets" / "attributions.schema.json").read_text())
    for path in whole.glob("batches/*.json"):
        validate(json.loads(path.read_text()), schema)


def test_draws_the_pictures(whole: Path):
    (events,) = whole.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    tags = accumulator.Tags()["images"]
    assert "averages/role_by_layer" in tags and sum(tag.startswith("facts/") for tag in tags) == 2


def test_resumes_where_it_was_stopped(whole: Path, tmp_path: Path):
    """Deleted batch files stand for batches that an interrupted run has not reached."""
    main(predict(tmp_path, *WORDS))
    gone = sorted(tmp_path.glob("batches/*.json"))[::2]
    for path in gone:
        path.unlink()
    main(predict(tmp_path, *WORDS))
    expected = scores(whole)
    for key, found_LT in scores(tmp_path).items():
        np.testing.assert_array_equal(found_LT, expected[key])


@pytest.mark.slow
def test_two_processes_write_the_records_of_one(whole: Path, tmp_path: Path):
    words = predict(tmp_path, *WORDS, "--trainer.strategy", "ddp", "--trainer.devices", 2)
    done = subprocess.run(
        [sys.executable, "-m", "lit_attr", *words],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = scores(whole)
    for key, found_LT in scores(tmp_path).items():
        np.testing.assert_allclose(found_LT, expected[key], atol=1e-5 * abs(expected[key]).max())


def test_another_rule_does_not_resume_the_folder(whole: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(predict(whole, *WORDS, "--model.rule", "norm-secant"))
    assert "was written with model.rule 'exact', this run has 'norm-secant'" in capsys.readouterr().err
