"""Runs killed with SIGKILL and resumed: every row once, with the numbers of an uninterrupted run to the bit.

The environment variable KILLS sets how often the run of one process is killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import count_batches, finish, launch, predict, read_whole, start, wait_until

from lit_attr.facts.sources import SAMPLE, open_rows

KILLS = int(os.environ.get("KILLS", "10"))
ROWS = 1000
BATCHES = 250


def command(rows: Path, folder: Path, processes: int = 1) -> list[str]:
    strategy = ["--trainer.strategy", "ddp", "--trainer.devices", processes] if processes > 1 else []
    words = ["--data.source", rows, "--data.batch_size", ROWS // BATCHES, "--trainer.logger", "false", *strategy]
    return predict(folder, *words)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's facts, some of them several times, each under its own id."""
    sample = [*open_rows(SAMPLE)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as stream:
        stream.writelines(json.dumps({**sample[row % len(sample)], "id": row}) + "\n" for row in range(ROWS))
    return path


@pytest.fixture(scope="module")
def uninterrupted(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """The examples of an uninterrupted run, by id."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(command(rows, folder / "out"), folder / "log")) == 0
    return read_whole(folder / "out", ROWS)


def test_killed_at_random_moments(rows: Path, uninterrupted: dict[Any, Any], tmp_path: Path):
    generator = random.Random(0)
    killed_after: list[int] = []
    complete = 0
    while len(killed_after) < KILLS:
        folder = tmp_path / str(complete)
        process = start(command(rows, folder), tmp_path / "log")
        # Some kills come before the first batch, while the folder is prepared.
        if finish(process, seconds=generator.uniform(0, 3)) is None:
            process.kill()
            finish(process)
            killed_after.append(count_batches(folder))
        else:
            assert process.exitcode == 0
            assert read_whole(folder, ROWS) == uninterrupted
            complete += 1
    assert finish(start(command(rows, folder), tmp_path / "log")) == 0
    assert read_whole(folder, ROWS) == uninterrupted
    assert any(0 < batches < BATCHES for batches in killed_after)
    print(f"batches on disk at each kill: {killed_after}; complete runs: {complete + 1}")


@pytest.mark.slow
def test_one_and_three_processes_resume_what_two_killed_ones_left(
    rows: Path, uninterrupted: dict[Any, Any], tmp_path: Path
):
    generator = random.Random(1)
    folder, log = tmp_path / "killed", tmp_path / "log"
    for victims in ("both", "first", "other"):
        until = count_batches(folder) + generator.randint(1, 40)
        with launch(["-m", "lit_attr", *command(rows, folder, 2)], log) as run:
            wait_until(lambda: count_batches(folder) >= until)  # noqa: B023  # called at once
            others = [json.loads(path.read_text())["pid"] for path in folder.glob(".process-*.lock")]
            if victims != "other":
                run.kill()
            for process in others if victims != "first" else ():
                os.kill(process, signal.SIGKILL)
            assert run.wait(60) != 0, log.read_text()
        assert count_batches(folder) < BATCHES
    for processes in (1, 3):
        resumed = tmp_path / str(processes)
        shutil.copytree(folder, resumed)
        with launch(["-m", "lit_attr", *command(rows, resumed, processes)], log) as run:
            assert run.wait(120) == 0, log.read_text()
        assert read_whole(resumed, ROWS) == uninterrupted
