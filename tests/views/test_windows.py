"""Sums over windows of ten layers: the same in logged curves and in plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import LAST, example, write_run

from lit_attr.evaluation.summary import summarise
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.records.folder import RunFolder
from lit_attr.views.curves import profile_curves
from lit_attr.views.paper.profiles import draw_profiles
from lit_attr.views.paper.run import read_run

TAG = "mean_score_sum_of_10_layers/last"


def profile(layers: list[int]) -> dict[str, Any]:
    """A profile in which each layer scores its index at the last token."""
    return {
        "layers": layers,
        "roles": ["last", "further"],
        "mean_score": [[float(layer), None] for layer in layers],
        "standard_error": [[None, None]] * len(layers),
    }


def test_a_windows_layers_are_those_of_the_causal_traces_of_rome():
    """From five layers before the layer to four after it, cut off at the first and the last layer."""
    curves = [*profile_curves(profile([*range(12)]), "mean_score")]
    expected = [sum(layer for layer in range(12) if middle - 5 <= layer < middle + 5) for middle in range(12)]
    assert [(step, values[TAG]) for step, values in curves] == [*enumerate(expected)]
    assert {name for _, values in curves for name in values} == {"mean_score/last", TAG}


@pytest.mark.parametrize("layers", [[*range(0, 48, 4)], [*range(9)], [*range(6), *range(7, 13)]])
def test_few_or_separate_layers_have_no_windows(layers: list[int]):
    curves = [*profile_curves(profile(layers), "mean_score")]
    assert {name for _, values in curves for name in values} == {"mean_score/last"}


def test_layers_need_not_begin_at_the_first():
    sums = [values[TAG] for _, values in profile_curves(profile([*range(20, 31)]), "mean_score")]
    assert sums[0] == sum(range(20, 25)) and sums[5] == sum(range(20, 30)) and sums[10] == sum(range(25, 31))


def test_curves_and_plots_agree(tmp_path: Path):
    scores = np.random.default_rng(0).standard_normal((2, 14, 4))
    folder = write_run(tmp_path / "run", [example(at, each.tolist()) for at, each in enumerate(scores)], layers=14)
    found = summarise(RunFolder(folder)).summary["profile"]
    logged = [values[TAG] for _, values in profile_curves(found, "mean_score")]
    figure = draw_profiles(read_run(folder))
    assert MEAN_ROLES[LAST] == "last"
    plotted = [line.get_ydata() for axis in figure.axes[2:] for line in axis.lines if len(line.get_xdata()) == 14]
    assert any(np.allclose(each, logged, rtol=1e-5) for each in plotted)
