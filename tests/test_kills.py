"""Runs killed with SIGKILL and started again: every row once, and to the bit an uninterrupted run's numbers.

KILLS in the environment is how often the run of one process is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_attr.cli import main
from lit_attr.reading import load_attributions
from lit_attr.sources import SAMPLE, open_rows

KILLS = int(os.environ.get("KILLS", "10"))
ROWS = 1000
BATCHES = 250

pytestmark = pytest.mark.slow


def command(rows: Path, folder: Path, processes: int = 1) -> list[str]:
    words = f"--data.batch_size 4 --trainer.accelerator cpu --trainer.devices {processes} --trainer.logger false"
    strategy = ["--trainer.strategy", "ddp"] if processes > 1 else []
    return ["predict", "--data.source", str(rows), "--writer.output_dir", str(folder), *words.split(), *strategy]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's facts, some of them several times, with ids of their own."""
    sample = [*open_rows(SAMPLE)]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as stream:
        stream.writelines(json.dumps({**sample[row % len(sample)], "id": row}) + "\n" for row in range(ROWS))
    return path


@pytest.fixture(scope="module")
def start(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    """Starts a run in a process of its own, which has the libraries loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_attr.cli"])

    def start(folder: Path) -> Any:
        process = context.Process(target=main, args=(command(rows, folder),))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def uninterrupted(
    start: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, dict[str, Any]]:
    """The examples of a run that nobody kills, by id."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    return assert_whole(folder)


def assert_whole(folder: Path) -> dict[Any, dict[str, Any]]:
    """Every row once, and nothing half-written; returns the examples by id."""
    examples = [
        example for path in folder.glob("batches/*.json") for example in json.loads(path.read_text())["examples"]
    ]
    assert sorted(example["id"] for example in examples) == list(range(ROWS))
    assert {path.name for path in folder.rglob(".*")} == {".lock"}
    assert json.loads((folder / "summary.json").read_text())["contrasts"] == ROWS
    assert sum(1 for _ in load_attributions(folder)) == ROWS
    return {example["id"]: example for example in examples}


def count_batches(folder: Path) -> int:
    return len([*folder.glob("batches/*.json")])


def test_killed_at_random_moments(start: Callable[[Path], Any], uninterrupted: dict[Any, Any], tmp_path: Path):
    chance = random.Random(0)
    killed_at: list[int] = []
    runs = 0
    while len(killed_at) < KILLS:
        folder = tmp_path / str(runs)
        process = start(folder)
        # Also before the first batch, while the folder is made ready.
        process.join(chance.uniform(0, 3))
        if process.exitcode is None:
            process.kill()
            process.join()
            killed_at.append(count_batches(folder))
        else:
            assert process.exitcode == 0
            assert assert_whole(folder) == uninterrupted
            runs += 1
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    assert assert_whole(folder) == uninterrupted
    assert any(0 < batches < BATCHES for batches in killed_at), killed_at
    print(f"killed after these numbers of batches: {killed_at}; whole runs: {runs + 1}")


def launch(rows: Path, folder: Path, processes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lit_attr", *command(rows, folder, processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def others(folder: Path) -> list[int]:
    """The processes of a run besides its first."""
    return [int(path.name.split("-")[1]) for path in folder.glob(".process-*.lock")]


def test_two_processes_killed_then_one_and_three(rows: Path, uninterrupted: dict[Any, Any], tmp_path: Path):
    chance = random.Random(1)
    folder = tmp_path / "killed"
    for victims in ("both", "first", "other"):
        before = count_batches(folder)
        with launch(rows, folder, 2) as run:
            until = before + chance.randint(1, 60)
            while count_batches(folder) < until:
                assert run.poll() is None, run.communicate()[0]
                time.sleep(0.01)
            second = others(folder)
            if victims != "other":
                run.kill()
            for process in second if victims != "first" else ():
                os.kill(process, signal.SIGKILL)
            said, _ = run.communicate(timeout=60)
            assert run.returncode != 0, said
        assert count_batches(folder) < BATCHES
    for processes in (1, 3):
        resumed = tmp_path / str(processes)
        shutil.copytree(folder, resumed)
        with launch(rows, resumed, processes) as run:
            said, _ = run.communicate(timeout=120)
            assert run.returncode == 0, said
        assert assert_whole(resumed) == uninterrupted
