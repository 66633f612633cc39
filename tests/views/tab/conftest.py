from __future__ import annotations

from pathlib import Path

import pytest
from tabs import Ask, asker, client_of, four_facts


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four facts, in the log folder `logs`."""
    return four_facts(tmp_path / "logs" / "one", contrasts=4)


@pytest.fixture
def ask(run: Path) -> Ask:
    return asker(client_of(run.parent))
