from __future__ import annotations

from pathlib import Path

import pytest
from tabs import four_facts


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test before has set: an in-process `predict` hides the bars of libraries."""
    for name in ("COLUMNS", "NO_COLOR", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four of nine facts, which is not finished."""
    return four_facts(tmp_path / "run", contrasts=9)
