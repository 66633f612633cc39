"""The table of choices against a prediction run's scores and exact effects, in numpy."""

from __future__ import annotations

from pathlib import Path

import measure_adaptive
import numpy as np
import pytest
from measured_runs import draw_rows, predict

from lit_attr.attribution.catalogue import AblationOptions
from lit_attr.models.loading import DEMO_MODEL

ROWS, PILOT, SEED = 10, 6, 3


def test_estimates_and_effects_are_of_the_same_mean_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(measure_adaptive, "OTHER_RULES", ())
    measure_adaptive.measure(
        rows=ROWS, seed=SEED, pilot=PILOT, pilots=1, ablation="mean", output_dir=str(tmp_path / "kept")
    )
    command, *lines = capsys.readouterr().out.splitlines()
    assert command == f"`python scripts/measure_adaptive.py --rows {ROWS} --seed {SEED} --ablation mean`"

    (means,) = (tmp_path / "kept").rglob("mean_writes.safetensors")
    run = predict(
        tmp_path / "run",
        draw_rows("sample", ROWS, SEED),
        verify=ROWS,
        model_name=DEMO_MODEL,
        ablation="mean",
        ablation_options=AblationOptions(mean_writes=str(means)),
    )
    scores = {
        (each.id, each.step): each.scores["mlp"].sum for _, batch in run.read_batches() for each in batch.examples
    }
    effects = {(each.id, each.step): each.effects["mlp"] for _, each in run.read_exact()}
    # Rows without ids are numbered in the order of the source.
    keys = [sorted(scores)[at] for at in np.random.default_rng(0).permutation(ROWS)[PILOT:]]
    r = np.corrcoef(*(np.concatenate([np.ravel(values[key]) for key in keys]) for values in (scores, effects)))[
        0, 1
    ]
    (row,) = (line for line in lines if line.startswith("| no cell"))
    assert row.split("|")[2].strip() == f"{r:.3f}"
