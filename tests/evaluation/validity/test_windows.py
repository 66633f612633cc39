"""Effects of windows of layers, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec import UNSET

from lit_attr.evaluation.validity.agreement import Compared
from lit_attr.evaluation.validity.windows import windows_report
from lit_attr.records.schema import EXACT_FORMAT, FORMAT_VERSION, ExactRecord, WindowsRecord

ROLES = ("prefix", "last")


def compared(
    identity: int, scores: list[list[float]], effects: list[list[float]] | None
) -> tuple[ExactRecord, Compared]:
    scores_LT = np.array(scores)
    windows = UNSET if effects is None else WindowsRecord(2, {"mlp": np.array(effects)})
    record = ExactRecord(
        format=EXACT_FORMAT,
        version=FORMAT_VERSION,
        layers=[4, 5, 6],
        rule="gradient",
        ablation="zero",
        id=identity,
        step=0,
        place=identity,
        effects={"mlp": scores_LT},
        resolution=0.0,
        windows=windows,
        curves=None,
        refused=None,
    )
    return record, Compared(scores_LT, scores_LT, ROLES, (0, 1), identity)


def test_effects_of_windows_are_compared_with_sums_of_scores():
    """The sums are 3, 30; 5, 50 and 1, 10; 1, 10: the effects of the first contrast are twice as large."""
    report = windows_report(
        [4, 5, 6],
        "mlp",
        "gradient",
        [
            compared(0, [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], [[6.0, 60.0], [10.0, 100.0]]),
            compared(1, [[1.0, 10.0], [0.0, 0.0], [1.0, 10.0]], [[1.0, 10.0], [1.0, 10.0]]),
            compared(2, [[1.0, 10.0], [0.0, 0.0], [1.0, 10.0]], None),
        ],
    )
    assert report is not None
    assert (report["size"], report["layers"], report["contrasts"]) == (2, [4, 5], 2)
    sums, effects = [3, 30, 5, 50, 1, 10, 1, 10], [6, 60, 10, 100, 1, 10, 1, 10]
    assert report["pearson"] == pytest.approx(np.corrcoef(sums, effects)[0, 1])
    last = report["roles"].index("last")
    assert [row[last] for row in report["mean_effect"]] == [35.0, 55.0]
    assert [row[last] for row in report["standard_error"]] == pytest.approx([25.0, 45.0])


def test_there_is_none_without_windows():
    assert windows_report([4, 5, 6], "mlp", "gradient", [compared(0, [[1.0, 2.0]] * 3, None)]) is None
