"""The script that measures the intervals of mean effects, on a run of made-up records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from project import REPOSITORY
from sealed import RUN
from tiny_runs import example, write_run

from lit_attr.records.files import file_name, write_sealed


def test_prints_coverage_and_width(tmp_path: Path):
    """Of 60 facts whose scores miss a fifth of the effects' standard deviation, and all of their mean."""
    generator = np.random.default_rng(0)
    scores_CLT = generator.standard_normal((60, 1, 4))
    effects_CLT = scores_CLT + 0.2 * generator.standard_normal((60, 1, 4)) + 3
    folder = write_run(
        tmp_path / "run", [example(fact, scores_CLT[fact].tolist()) for fact in range(60)], layers=1
    )
    (folder / "exact").mkdir()
    for fact in range(60):
        record = {
            "format": "lit-attr/exact",
            "version": 2,
            "layers": [0],
            "rule": "gradient",
            "run": RUN,
            "ablation": "zero",
            "id": fact,
            "step": 0,
            "place": fact,
            "effects": {"mlp": effects_CLT[fact].tolist()},
            "resolution": 0.0,
            "curves": None,
            "refused": None,
        }
        write_sealed(folder / "exact" / file_name(fact, 0), record)
    command = [sys.executable, str(REPOSITORY / "scripts" / "measure_means.py"), str(folder), "--samples", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, _, signed, magnitude = done.stdout.strip().splitlines()
    kind, contrasts, cells, coverage, alone, width = signed.strip("| ").split(" | ")
    # Position 0, last subject, first subsequent, last.
    assert (kind, contrasts, cells) == ("signed", "60", "4")
    assert 0.85 <= float(coverage) <= 1 and 0.85 <= float(alone) <= 1
    assert float(width) == np.clip(float(width), 0.15, 0.3)
    assert magnitude.startswith("| magnitude | 60 | 4 | ")
