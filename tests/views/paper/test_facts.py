"""The figure of single facts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_runs import ONE

from lit_attr.views.paper.facts import draw_facts
from lit_attr.views.paper.run import pick_facts, read_run


def test_fact_is_scaled_without_its_first_token(run: Path):
    taken = read_run(run)
    axis = draw_facts(pick_facts(taken, 6, ["one"], known=False), taken).axes[0]
    drawn = np.ma.filled(axis.collections[0].get_array().astype(float), np.nan)
    np.testing.assert_array_equal(drawn, np.array(ONE["scores"]["mlp"]["sum"]).T)
    assert axis.collections[0].get_clim() == (-8, 8)
    assert axis.yaxis_inverted()
    hatched = [patch.get_xy() for patch in axis.patches if patch.get_hatch()]
    assert hatched == [(0, 0), (1, 0)]
    labels = axis.get_yticklabels()
    assert [label.get_text() for label in labels] == ["A", "␣B", "␣is", "␣in"]
    assert [label.get_fontweight() for label in labels] == ["bold", "bold", "normal", "normal"]
    assert axis.get_title("left") == "A B is in → X / Y\nlogit difference +0.00 · known"
