"""Mean scores by layer as curves with confidence bands: the roles of one run, and several runs role by role.

Shape suffixes: N contrasts, L layers, R roles (in the order of `MEAN_ROLES`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lit_attr.facts.roles import MEAN_ROLES, POSITION_0
from lit_attr.views.curves import WINDOW, windows
from lit_attr.views.paper.run import CONFIDENCE, Estimate, Run, estimate
from lit_attr.views.paper.style import COLOURS, DASHES, GREY, new_figure

BANDS = f"Bands: {CONFIDENCE:.0%} confidence, normal approximation, clustered by fact."
# The last token's scores, and often those at position 0, are so large that on one scale with them the other curves
# would coincide.
APART = {"last": 1, POSITION_0: 2}


def draw_profiles(run: Run) -> Figure:
    """Draws a curve for each role, and beside it the sums over windows where enough layers are consecutive."""
    panels = {"score of a layer": estimate(run.means_NLR, run.facts_N)}
    if sums := windows(run.layers_L.tolist()):
        sums_NLR = np.stack([run.means_NLR[:, window].sum(1) for window in sums], 1)
        panels[f"sum over the {WINDOW} layers around it"] = estimate(sums_NLR, run.facts_N)
    note = "The last token has its own scale, and so has position 0, in no role."
    figure = new_figure(5.4, f"{run.title}. {note} {BANDS}")
    axes = figure.subplots(3, len(panels), sharex=True, height_ratios=(3, 2, 2), squeeze=False)
    for column, (name, each) in zip(axes.T, panels.items(), strict=True):
        for place, (role, count) in enumerate(zip(MEAN_ROLES, each.count_R, strict=True)):
            axis = column[APART.get(role, 0)]
            # The eighth colour is that of position 0.
            _draw_curve(axis, run.layers_L, each, place, f"{role} (n = {count:,})", COLOURS[place - 1], "-")
        column[0].set_title(name)
        column[-1].set_xlabel("layer")
        column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis, name in zip(axes[:, 0], ("other roles", *APART), strict=True):
        axis.set_ylabel(name)
    handles = [handle for axis in axes[:, 0] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    figure.supylabel(f"mean {run.quantity} in logits")
    return figure


def draw_comparison(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    """Draws a panel for each role with a curve for each run."""
    # Runs of one model share its layer numbers, whichever layers they score.
    same = len({run.model for run in runs}) == 1 or len({run.layers_L.max() for run in runs}) == 1
    across = "layer" if same else "relative depth, layer / last layer scored"
    figure = new_figure(4.2, f"Across: {across}. Each role has its own scale. {BANDS}")
    axes = figure.subplots(2, len(MEAN_ROLES) // 2).flat
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        x_L, each = (
            run.layers_L / (1 if same else run.layers_L.max().clip(1)),
            estimate(run.means_NLR, run.facts_N),
        )
        look = COLOURS[(number + 2) % len(COLOURS)], DASHES[number % len(DASHES)]
        for place, role in enumerate(MEAN_ROLES):
            _draw_curve(axes[place], x_L, each, place, f"{name} (n = {len(run.means_NLR):,})", *look)
            axes[place].set_title(role)
            axes[place].xaxis.set_major_locator(MaxNLocator(4, integer=same, steps=[1, 2, 5, 10]))
    figure.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside upper center", ncols=2)
    quantities = sorted({run.quantity for run in runs})
    figure.supylabel(f"mean {' or '.join(quantities)} in logits")
    return figure


def _draw_curve(
    axis: Axes, x_L: NDArray[Any], each: Estimate, role: int, label: str, colour: str, dash: str
) -> None:
    mean_L, half_L = each.mean_LR[:, role], each.half_LR[:, role]
    axis.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    # The band of a single layer has no width.
    bars, marker = half_L if len(x_L) == 1 else None, "o" if len(x_L) <= WINDOW else ""
    axis.errorbar(x_L, mean_L, bars, color=colour, linestyle=dash, marker=marker, label=label, lw=1.1, ms=2.5)
    axis.fill_between(x_L, mean_L - half_L, mean_L + half_L, color=colour, alpha=0.22, linewidth=0)
