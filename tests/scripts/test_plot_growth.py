"""`scripts/plot_growth.py`: the figure of facts being learnt, from the event files of `AttributionMonitor`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import REPOSITORY
from torch.utils.tensorboard import SummaryWriter

SCRIPT = str(REPOSITORY / "scripts" / "plot_growth.py")


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


def log(folder: Path, difference: str = "attribution/logit_difference") -> None:
    with SummaryWriter(str(folder)) as writer:
        for step in (0, 100, 200):
            writer.add_scalar(difference, step / 50, step)
            for name in ("contrast_accuracy", "known_share", "score/last", "layer/last"):
                writer.add_scalar(f"attribution/{name}", step / 200, step)
            image = np.full((40, 60, 3), (step, 0, 255), dtype=np.uint8)
            writer.add_image("attribution/role_by_layer", image, step, dataformats="HWC")


def test_draws_curves_and_maps(tmp_path: Path):
    log(tmp_path / "version_0")
    done = run(tmp_path, "--out", tmp_path / "growth.png")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'growth.png'}\n")
    pixels = np.asarray(Image.open(tmp_path / "growth.png").convert("RGB"))
    for step in (0, 100, 200):
        assert (pixels == (step, 0, 255)).all(-1).sum() > 1000, "the map of each step"
    assert (pixels == (0x1B, 0x3A, 0x6B)).all(-1).any(), "the logit difference"


@pytest.mark.parametrize(
    ("difference", "runs", "message"),
    [("loss", ["a"], "AttributionMonitor has logged nothing in it"), ("loss", ["a", "b"], "has 2 event files")],
)
def test_errors_are_one_line(tmp_path: Path, difference: str, runs: list[str], message: str):
    for name in runs:
        log(tmp_path / name, difference)
    done = run(tmp_path, "--out", tmp_path / "growth.png")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith("plot_growth.py: error: ") and message in line
    assert not (tmp_path / "growth.png").exists()
