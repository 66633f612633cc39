from __future__ import annotations

from pathlib import Path

import pytest
from tabs import FIRST, FOURTH, SECOND, THIRD, add_batch, add_exact, new_run
from tiny_runs import example


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test before has set: an in-process `predict` hides the bars of libraries."""
    for name in ("COLUMNS", "NO_COLOR", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four facts in two batch files; the first has exact effects."""
    folder = new_run(tmp_path / "run", contrasts=9)
    add_batch(
        folder,
        example(3, FIRST, logit_diff=1.5, prob_true=0.4, rank_true=0, prompt="Spain is in", target_true=" Europe"),
        example(1, SECOND, logit_diff=-2.0, prob_true=0.1, rank_true=7, relation_id="P36", prompt="Peru is in"),
    )
    add_batch(
        folder,
        example(10, THIRD, logit_diff=0.5, prob_true=0.2, rank_true=1, relation_id="P36"),
        example("text", FOURTH, logit_diff=3.0, prob_true=0.9, rank_true=0),
    )
    # The first token does not count: ‖(0, 0, 0, 0, 0, 3)‖ / ‖(1, 2, 4, 3, 0, 5)‖ = 3 / √55.
    add_exact(folder, 3, [[0, 1, 2, 4], [0, 3, 0, 5]])
    return folder
