"""`scripts/real_model.sh`: a real model over the sample facts, without a hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from project import REPOSITORY, writing_trainer
from real_models import ALL, SMOLLM2, real_model

from lit_attr import AttributionModule, CounterfactDataModule, load_attributions
from lit_attr.models.loading import load_model, load_tokenizer

ENVIRONMENT = REPOSITORY / ".venv"
pytestmark = [
    pytest.mark.registry,
    pytest.mark.skipif(
        not any(ENVIRONMENT.glob("installed*")), reason="the script would install into an environment in use"
    ),
]

FACTS, FEW = 474, 6
SECONDS = 3000 if ALL else 300


@pytest.mark.slow
def test_runs_the_model_and_prints_what_a_run_prints(tmp_path: Path):
    model, few = real_model(SMOLLM2), [] if ALL else ["--data.limit", str(FEW), "--model.verify", "1"]
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "real_model.sh"), "--trainer.accelerator", "cpu", *few],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = FACTS if ALL else FEW
    assert re.search(
        rf"^contrasts: {facts} \(0 from an earlier run\), rows refused: 0$", done.stdout, re.MULTILINE
    )
    assert "agreement: " in done.stdout
    folder = tmp_path / "lit_attr_smollm2"
    records = [*load_attributions(folder)]
    assert len(records) == facts
    for record in records:
        scores_LT = np.array(record["scores"]["mlp"]["sum"])
        assert scores_LT.shape == (30, len(record["tokens"]))
        assert np.isfinite(scores_LT).all()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["model"]["model_name"] == str(model)
    assert manifest["model"]["dtype"] == "float32"


@pytest.mark.slow
def test_a_folder_of_safetensors_of_the_same_weights_has_the_same_scores(tmp_path: Path):
    path = str(real_model(SMOLLM2))
    model, tokenizer = load_model(path), load_tokenizer(path)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    runs = []
    for settings in ({"model": model, "tokenizer": tokenizer}, {"model_name": str(tmp_path / "model")}):
        folder = tmp_path / str(len(runs))
        module = AttributionModule(verify=0, **settings)
        data = CounterfactDataModule(limit=None if ALL else FEW)
        writing_trainer(folder, max_heatmaps=0).predict(module, datamodule=data, return_predictions=False)
        runs.append({record["id"]: record for record in load_attributions(folder)})
    assert runs[0].keys() == runs[1].keys()
    largest = 0.0
    for key, record in runs[0].items():
        one_LT, other_LT = (np.array(each["scores"]["mlp"]["sum"]) for each in (record, runs[1][key]))
        assert record["tokens"] == runs[1][key]["tokens"]
        largest = max(largest, float(np.abs(one_LT - other_LT).max() / np.abs(one_LT).max()))
    print(f"{len(runs[0])} contrasts: largest difference {largest:.2g} of the contrast's largest score")
    assert largest < 1e-6
