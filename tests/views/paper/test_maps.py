"""The maps of mean scores by role and layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from tiny_runs import LAST

from lit_attr.views.paper.maps import draw_relations, draw_roles
from lit_attr.views.paper.run import read_run


def drawn(axis: Axes) -> np.ndarray:
    """The values of a map, NaN where there is none."""
    return np.ma.filled(axis.collections[0].get_array().astype(float), np.nan)


def test_maps_show_the_means(run: Path):
    taken = read_run(run)
    everything, known = draw_roles(taken).axes[:2]
    np.testing.assert_allclose(drawn(everything)[LAST], [5, 2])
    np.testing.assert_allclose(drawn(known)[LAST], [4, 8])
    assert np.isnan(drawn(known)[1]).all()
    assert [label.get_text() for label in known.get_yticklabels()][LAST] == "last\nn = 1"
    # Both have one scale, which ends at the largest magnitude of either below position 0.
    assert everything.collections[0].get_clim() == known.collections[0].get_clim() == (-8, 8)
    np.testing.assert_allclose(drawn(known)[0], [10, 20])
    hatched = [[patch.get_xy() for patch in axis.patches if patch.get_hatch()] for axis in (everything, known)]
    assert hatched == [[(1, 0)], [(0, 0), (1, 0)]]
    first, second = draw_relations(taken, 5).axes[:2]
    assert first.get_title() == "P17 (n = 1)\n… is in"
    np.testing.assert_allclose(drawn(second)[LAST], [6, -4])


def test_maps_say_what_is_averaged(run: Path):
    for quantity in ("score (estimate)", "exact effect"):
        note = draw_roles(read_run(run)._replace(quantity=quantity)).get_supxlabel()
        assert f"mean {quantity} in logits" in note.replace("\n", " ")
