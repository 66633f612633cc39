"""Runs interrupted during the comparison with exact effects, and before their summary: the report is the same."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import count_batches, finish, predict, start, wait_until

ROWS, VERIFIED, BATCH_SIZE = 64, 24, 8
BATCHES = ROWS // BATCH_SIZE


def command(folder: Path) -> list[str]:
    settings = {"--data.limit": ROWS, "--data.batch_size": BATCH_SIZE, "--trainer.logger": "false"}
    words = [str(word) for pair in settings.items() for word in pair]
    # The later of two flags counts.
    return [*predict(folder, *words), "--model.verify", str(VERIFIED)]


def report(folder: Path) -> dict[str, Any]:
    """All that a run reports: its summary without timings, its exact effects, and its pictures."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    files = [*folder.glob("exact/*.json"), *folder.rglob("*.png")]
    return {"summary": summary} | {str(path.relative_to(folder)): path.read_bytes() for path in files}


def count_exact(folder: Path) -> int:
    return len([*folder.glob("exact/*.json")])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(command(folder / "out"), folder / "log")) == 0
    found = report(folder / "out")
    assert count_exact(folder / "out") == found["summary"]["agreement"]["contrasts"] == VERIFIED
    return found


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
@pytest.mark.parametrize("moment", ["comparison", "last batch", "before the summary"])
def test_a_resumed_run_reports_what_an_uninterrupted_one_does(
    signum: signal.Signals, moment: str, uninterrupted: dict[str, Any], tmp_path: Path
):
    folder, log = tmp_path / "out", tmp_path / "log"
    process = start(command(folder), log)
    if moment == "last batch":
        wait_until(lambda: count_batches(folder) >= BATCHES - 1)
    else:
        wait_until(lambda: count_exact(folder) >= (VERIFIED // 2 if moment == "comparison" else VERIFIED))
    assert process.pid is not None
    os.kill(process.pid, signum)
    assert finish(process) == (130 if signum == signal.SIGINT else -signal.SIGKILL), log.read_text()
    assert not (folder / "summary.json").exists()
    assert finish(start(command(folder), log)) == 0, log.read_text()
    assert report(folder) == uninterrupted
