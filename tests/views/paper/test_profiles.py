"""The curves over layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_runs import LAST, QUANTILE, example, write_run

from lit_attr.views.paper.profiles import draw_comparison, draw_profiles
from lit_attr.views.paper.run import read_run


def test_profiles_have_means_bands_and_windows_of_ten_layers(tmp_path: Path):
    # Layer l scores l at every token, and two more in the second fact.
    facts = [example(shift, [[layer + shift] * 4 for layer in range(12)]) for shift in (0, 2)]
    figure = draw_profiles(read_run(write_run(tmp_path / "run", facts, layers=12)))
    # Below the other roles the last token, below it position 0, which has the same scores here.
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == ["other roles", "last", "position 0"]
    (first,) = [line for line in figure.axes[4].lines if len(line.get_xdata()) == 12]
    np.testing.assert_allclose(first.get_ydata(), np.arange(12) + 1)
    layer, window = figure.axes[2:4]
    (line,) = [line for line in layer.lines if len(line.get_xdata()) == 12]
    np.testing.assert_allclose(line.get_ydata(), np.arange(12) + 1)
    band = layer.collections[-1].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [1 - QUANTILE, 12 + QUANTILE], rtol=1e-6)
    (line,) = [line for line in window.lines if len(line.get_xdata()) == 12]
    # The window at layer 0 has layers 0 to 4, at 5 layers 0 to 9, at 11 layers 6 to 11; each mean is 1 larger.
    sums = line.get_ydata()
    np.testing.assert_allclose(sums[[0, 5, 11]], [10 + 5, 45 + 10, 51 + 6])


def test_few_or_separate_layers_have_no_windows(run: Path):
    taken = read_run(run)
    assert len(draw_profiles(taken).axes) == 3
    apart = taken._replace(layers_L=np.arange(0, 24, 2), means_NLR=taken.means_NLR.repeat(6, 1))
    assert len(draw_profiles(apart).axes) == 3


def test_single_layer_has_its_interval_as_a_bar(tmp_path: Path):
    facts = [example(shift, [[shift] * 4]) for shift in (0, 2)]
    axis = draw_profiles(read_run(write_run(tmp_path / "run", facts, layers=1))).axes[1]
    ends = axis.collections[0].get_segments()[0][:, 1]
    np.testing.assert_allclose(ends, [1 - QUANTILE, 1 + QUANTILE], rtol=1e-6)


def test_comparison_is_over_relative_depth_where_models_differ(run: Path, tmp_path: Path):
    deep = write_run(tmp_path / "deep", [example(0, [[3] * 4] * 5)], layers=5, model="deep")
    first, second = read_run(run), read_run(deep)
    axis = draw_comparison([first, second], ["a", "b"]).axes[LAST]
    shallow, curve = (container.lines[0].get_xdata().tolist() for container in axis.containers)
    assert (shallow, curve) == ([0, 1], [0, 0.25, 0.5, 0.75, 1])
    # Runs of one model keep its layer numbers, although one of them has fewer layers.
    axis = draw_comparison([first, second._replace(model="tiny")], ["a", "b"]).axes[LAST]
    assert axis.containers[1].lines[0].get_xdata().tolist() == [0, 1, 2, 3, 4]


def test_comparison_has_a_panel_for_position_0_and_for_each_role(run: Path):
    taken = read_run(run)
    axes = draw_comparison([taken, taken], ["a", "b"]).axes
    assert [axis.get_title() for axis in axes] == [
        *("position 0", "prefix", "first subject", "middle subject"),
        *("last subject", "first subsequent", "further", "last"),
    ]
    np.testing.assert_allclose(axes[0].containers[1].lines[0].get_ydata(), [2.5, 9.5])


def test_curves_say_what_is_averaged(run: Path):
    estimates = read_run(run)
    exact = estimates._replace(quantity="exact effect")
    assert draw_profiles(estimates).get_supylabel() == "mean score (estimate) in logits"
    assert draw_profiles(exact).get_supylabel() == "mean exact effect in logits"
    both = draw_comparison([estimates, exact], ["one", "other"])
    assert both.get_supylabel() == "mean exact effect or score (estimate) in logits"
