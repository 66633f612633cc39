"""Runs of several processes: every row exactly once, with the numbers of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from predict_shares import predict_shares
from project import REPOSITORY

from lit_attr.records.reading import load_attributions

COUNTS = [1, 2, 7, 100, 101]
SCRIPT = str(REPOSITORY / "tests" / "support" / "predict_shares.py")


def start(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python command whose processes use one thread each."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=180, env=variables, check=False
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process, for each number of rows."""
    out = tmp_path_factory.mktemp("alone")
    predict_shares(out, COUNTS, processes=1)
    return out


def assert_same(folder: Path, expected: Path, count: int) -> None:
    records = sorted(load_attributions(folder), key=lambda record: record["id"])
    others = sorted(load_attributions(expected), key=lambda record: record["id"])
    assert [record["id"] for record in records] == list(range(count))
    for record, other in zip(records, others, strict=True):
        scores, expected_scores = record["scores"]["mlp"], other["scores"]["mlp"]
        for kind in ("sum", "l2"):
            np.testing.assert_allclose(scores[kind], expected_scores[kind], rtol=1e-6, atol=1e-6)
        assert record["logit_diff"] == pytest.approx(other["logit_diff"], rel=1e-6, abs=1e-6)
    summary, whole = (json.loads((path / "summary.json").read_text()) for path in (folder, expected))
    for name in ("contrasts", "contrast_accuracy", "known", "rejected"):
        assert summary[name] == whole[name]
    assert summary["agreement"]["contrasts"] == whole["agreement"]["contrasts"] == min(16, count)
    means, expected_means = (_flat(record["profile"]["mean_score"]) for record in (summary, whole))
    assert means == pytest.approx(expected_means, rel=1e-6, abs=1e-6, nan_ok=True)


def _flat(rows: list[list[float | None]]) -> list[float]:
    return [float("nan") if mean is None else mean for row in rows for mean in row]


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_torchrun_gives_every_row_once_and_the_same_numbers(processes: int, alone: Path, tmp_path: Path):
    """With one row, and with seven in two batches, some process gets nothing."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = start(*launcher, SCRIPT, str(tmp_path), *map(str, COUNTS))
    assert done.returncode == 0, done.stderr[-3000:]
    for count in COUNTS:
        assert_same(tmp_path / str(count), alone / str(count), count)


def test_lightning_starts_the_processes(alone: Path, tmp_path: Path):
    words = "--data.limit 101 --data.batch_size 5 --data.max_tokens 40 --trainer.accelerator cpu"
    configs = ["--config", str(REPOSITORY / "configs" / "ddp.yaml"), "--trainer.devices", "2"]
    done = start("-m", "lit_attr", "predict", *configs, *words.split(), "--writer.output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("contrasts: 101 (0 from an earlier run)") == 1
    assert_same(tmp_path, alone / "101", 101)


def test_a_failed_process_ends_the_others(tmp_path: Path):
    started = time.monotonic()
    done = start(SCRIPT, str(tmp_path), "100", FAIL="1")
    assert done.returncode != 0
    assert "ValueError: broken in process 1" in done.stderr
    assert time.monotonic() - started < 90
    assert not (tmp_path / "100" / "summary.json").exists()


@pytest.mark.parametrize(
    ("environment", "own", "others"),
    [
        pytest.param(
            {"OTHER": "1"},
            "UserError: data.source: process 1 has other rows or another model than the first one; give every",
            "ReportedError: another process of the run could not start",
            marks=pytest.mark.slow,
        ),
        (
            {"ONLY": "known", "FAIL": "1"},
            "ValueError: broken in process 1",
            "ReportedError: another process of the run could not answer its contrasts",
        ),
    ],
)
def test_all_processes_leave_where_one_cannot_start(
    environment: dict[str, str], own: str, others: str, tmp_path: Path
):
    started = time.monotonic()
    done = start(SCRIPT, str(tmp_path), "20", **environment)
    assert done.returncode != 0
    assert own in done.stderr and others in done.stderr
    assert time.monotonic() - started < 90
    assert not [*tmp_path.glob("20/batches/*")]


@pytest.mark.slow
def test_another_number_of_processes_resumes_a_run(alone: Path, tmp_path: Path):
    words = "--data.limit 101 --data.batch_size 5 --data.max_tokens 40 --trainer.accelerator cpu"
    command: list[Any] = ["-m", "lit_attr", "predict", *words.split(), "--writer.output_dir", str(tmp_path)]
    assert start(*command, "--trainer.strategy", "ddp", "--trainer.devices", "2").returncode == 0
    for path in [*(tmp_path / "batches").iterdir()][::2]:
        path.unlink()
    done = start(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(tmp_path, alone / "101", 101)
