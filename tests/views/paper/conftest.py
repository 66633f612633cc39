"""The style of the figures, and a small run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
from tiny_runs import ONE, SAME, TWO, write_run

from lit_attr.views.paper.style import STYLE


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of three contrasts, one of them of a token with itself."""
    return write_run(tmp_path / "run", [ONE, TWO, SAME])
