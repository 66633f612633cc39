"""What a run of the command line prints, and what it leaves out."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from runs import launch, predict

from lit_attr.facts.sources import SAMPLE, open_rows

ROWS = [*open_rows(SAMPLE)][:6]
# Lines of libraries.
NOISE = re.compile(
    "available|Loading weights|Tip|litmodels|LitLogger|Initializing distributed|distributed_backend|"
    "You are using|\\x1b|\\r|Warning|warnings.warn|site-packages|de-quantizing"
)


def run(folder: Path, *words: object, environment: Mapping[str, str] | None = None) -> list[str]:
    """The lines of a run in a process of its own, whose output is a file."""
    log = folder.with_suffix(".log")
    with launch(["-m", "lit_attr", *predict(folder, *words)], log, environment=environment) as process:
        assert process.wait(300) == 0, log.read_text()
    return log.read_bytes().decode().split("\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    refused = {**ROWS[0], "id": "refused", "subject": "Atlantis"}
    path.write_text("\n".join(map(json.dumps, [*ROWS, refused])))
    return path


def test_a_run_in_its_own_words(source: Path, tmp_path: Path):
    # The rows have two relations, of which the model sees the first five.
    lines = run(tmp_path / "out", "--data.source", source, "--model.layers", "[0,1,2,5]", "--model.verify", 2)
    assert not [line for line in lines if NOISE.search(line)]
    opening = [
        f"facts: 6 from {source} (6 contrasts), 1 row refused",
        "model: demo",
        "component: mlp of 0-2, 5 of 8 layers, float32 on cpu, rule gradient",
        "left to do: scores of 6 facts, exact effects of 2 facts",
    ]
    assert lines[:4] == opening
    assert lines[4].startswith("contrasts: 6 (0 from an earlier run), rows refused: 1")
    # Nothing else: the findings follow at once.
    again = run(tmp_path / "out", "--data.source", source, "--model.layers", "[0,1,2,5]", "--model.verify", 2)
    assert again[:3] == opening[:3]
    assert again[3] == "left to do: nothing; scored by an earlier run: 6"
    assert again[4].startswith("contrasts: 6 (6 from an earlier run)")


@pytest.mark.slow
def test_a_resumed_adaptive_run_says_what_is_left(tmp_path: Path):
    words = ["--data.limit", 30, "--model.min_agreement", 0.9, "--model.pilot", 4, "--model.ablation", "resample"]
    limited = run(tmp_path / "out", *words, "--trainer.limit_predict_batches", 2)
    assert "rule gradient, resample ablation" in limited[2]
    total = int(re.findall(r"\((\d+) contrasts\)", limited[0])[0])
    assert limited[3] == f"left to do: pilot of 4 facts, scores of {total - 4} facts"
    rest = run(tmp_path / "out", *words)
    left = f"left to do: pilot of 2 facts, scores of {total - 4} facts"
    assert rest[3] == f"{left}; scored by an earlier run: 2"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_print_nothing_twice(strategy: str, tmp_path: Path):
    words = ["--data.limit", 20, "--trainer.devices", 2, "--trainer.strategy", strategy]
    lines = [line for line in run(tmp_path / "out", *words) if line]
    assert not [line for line in lines if NOISE.search(line)]
    assert len(lines) == len(set(lines))
    assert [line.partition(":")[0] for line in lines[:5]] == [
        "facts",
        "model",
        "component",
        "left to do",
        "contrasts",
    ]


@pytest.mark.slow
def test_users_who_ask_for_the_messages_of_libraries_get_them(tmp_path: Path):
    lines = run(tmp_path / "out", "--data.limit", 2, environment={"TRANSFORMERS_VERBOSITY": "info"})
    assert any("Loading weights" in line for line in lines)


PROJECT = """
import lightning.pytorch as pl
from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[AttributionWriter("out")])
trainer.predict(AttributionModule(verify=0), CounterfactDataModule(limit=2), return_predictions=False)
"""


def test_a_lightning_project_keeps_the_messages_of_its_trainer(tmp_path: Path):
    (tmp_path / "project.py").write_text(PROJECT)
    done = subprocess.run(
        [sys.executable, "project.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "GPU available" in done.stderr
    assert "Loading weights" in done.stderr
    assert "Predicting" in done.stdout
    assert "left to do" not in done.stdout


def on_terminal(folder: Path, *words: object) -> str:
    """All that a run writes to a terminal of 40 lines and 100 columns."""
    main, other = pty.openpty()
    subprocess.run(["stty", "rows", "40", "cols", "100"], stdin=other, check=True)
    command = [sys.executable, "-m", "lit_attr", *predict(folder, *words)]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other)
    os.close(other)
    written = b""
    while True:
        try:
            written += os.read(main, 65536)
        except OSError:  # the other end is closed
            break
    os.close(main)
    assert process.wait(300) == 0, written.decode()
    return written.decode()


def test_a_terminal_has_one_bar_with_its_phase_which_is_gone_in_the_end(tmp_path: Path):
    words = ["--data.limit", 40, "--model.min_agreement", 0.9, "--model.pilot", 4, "--model.verify", 3]
    written = on_terminal(tmp_path / "out", *words)
    phases = re.findall(r"\r(\w[\w ]+)(?:: +\d+%\|| \.\.\.)", written)
    assert [*dict.fromkeys(phases)] == ["pilot", "scores", "exact effects", "writing the summary and the pictures"]
    assert re.search(r"pilot: +100%\|█+\| 4/4 facts, +[\d.]+ facts/s, 00:00 left", written)
    assert "Loading weights" not in written
    # What stays on the screen: each line after its last carriage return.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in written.split("\n")]
    assert not [line for line in lines if "facts/s" in line or "writing" in line]
    assert [line.partition(":")[0] for line in lines[:5]] == [
        "facts",
        "model",
        "component",
        "left to do",
        "contrasts",
    ]


@pytest.mark.slow
def test_a_terminal_without_the_bar(tmp_path: Path):
    written = on_terminal(tmp_path / "out", "--data.limit", 3, "--trainer.enable_progress_bar", "false")
    assert "facts/s" not in written
    assert "left to do: scores of 3 facts" in written


@pytest.mark.slow
def test_a_bar_of_the_users_own_takes_the_place_of_ours(tmp_path: Path):
    written = on_terminal(tmp_path / "out", "--data.limit", 3, "--trainer.callbacks+=TQDMProgressBar")
    assert "facts/s" not in written
    assert "Predicting" in written
