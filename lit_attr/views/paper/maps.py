"""Maps of mean scores by token role and layer, of whole runs and of single relations.

Shape suffixes: N contrasts, L layers, R roles (in the order of `MEAN_ROLES`), C rows of a map (tokens or roles).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.views.colours import TABLE, scale_of
from lit_attr.views.paper.run import Estimate, Run, estimate
from lit_attr.views.paper.style import GREY, GROUND, INK, POINTS, SMALL, WIDTH, fit, new_figure, signed, wrapped

SIGNED = ListedColormap(TABLE / 255, "lit-attr")  # blue, white, red
APART = (
    "Above the line: position 0, in no role. The scale is set without it; hatched: beyond it. Grey: no such token."
)
COLUMNS = 3  # panels side by side
# Of more rows and columns than these, every second one is labelled, or every third, and so on.
MAX_ROWS, MAX_COLUMNS = 40, 8


def draw_roles(run: Run) -> Figure:
    """Draws the means over all contrasts and over the known ones, on one scale."""
    estimates = [estimate(each.means_NLR, each.facts_N) for each in (run, run.only(run.known_N))]
    rows = [[f"{role}\nn = {n:,}" for role, n in zip(MEAN_ROLES, each.count_R, strict=True)] for each in estimates]
    return _draw_role_maps(run, ["all contrasts", "known facts"], estimates, rows)


def draw_relations(run: Run, count: int) -> Figure:
    """Draws the means over the contrasts of each of the largest relations, on one scale."""
    sizes = Counter(relation for relation in run.relations_N.tolist() if relation)
    # The order of relations of one size must not depend on the order of the batches.
    relations = sorted(sizes, key=lambda relation: (-sizes[relation], relation))[:count]
    parts = [run.only(run.relations_N == relation) for relation in relations]
    estimates = [estimate(each.means_NLR, each.facts_N) for each in parts]
    heads = [f"{fit(relation, 'answer')} (n = {sizes[relation]:,})" for relation in relations]
    titles = [f"{head}\n{fit(run.prompts[name], 'example')}" for head, name in zip(heads, relations, strict=True)]
    rows = [[role if place % COLUMNS == 0 else "" for role in MEAN_ROLES] for place in range(len(relations))]
    return _draw_role_maps(run, titles, estimates, rows)


def _draw_role_maps(
    run: Run, titles: Sequence[str], estimates: Sequence[Estimate], rows: Sequence[Sequence[str]]
) -> Figure:
    columns, lines = min(COLUMNS, len(titles)), math.ceil(len(titles) / COLUMNS)
    note = f"{run.title}: mean {run.quantity} in logits. n: contrasts. {APART}"
    figure = new_figure(2.6 * lines + 0.3, note)
    axes = figure.subplots(lines, columns, squeeze=False)
    # One scale for all panels, in each of which position 0 is the first row.
    scale = scale_of(np.concatenate([each.mean_LR.T for each in estimates], 1))
    width = int((WIDTH - 1.7) / columns * POINTS)  # without the roles' names and the scale
    for axis, title, each, names in zip(axes.flat, titles, estimates, rows, strict=False):
        cells = draw_map(axis, each.mean_LR.T, scale, run.layers_L, names)
        hatch_beyond(axis, each.mean_LR.T, scale)
        axis.axhline(1, color=INK, linewidth=1.2)
        axis.set_title(wrapped(title, width), fontsize=SMALL)
    for axis in axes.flat[len(titles) :]:
        axis.set_axis_off()
    draw_scale(cells, axes, 2.1 * lines)
    return figure


def draw_map(
    axis: Axes, values_CL: NDArray[Any], scale: float, layers: ArrayLike, rows: Sequence[str]
) -> QuadMesh:
    """Draws a map of values, with layers to the right.

    Args:
        axis: The panel.
        values_CL: Values in logits; NaN is drawn as hatched grey.
        scale: Magnitude that gets the deepest colour.
        layers: True layer indices.
        rows: Names of the rows from the top to the bottom.
    """
    # The ground is visible where there is no value.
    axis.patch.set(facecolor=GROUND, hatch="/////", edgecolor=GREY, linewidth=0)
    cells = axis.pcolormesh(np.ma.masked_invalid(values_CL), cmap=SIGNED, vmin=-scale, vmax=scale)
    # Viewers show seams between cells whose edges do not have the cells' own colours.
    cells.set(edgecolor="face", linewidth=0.1)
    axis.set_ylim(len(values_CL), 0)
    columns = np.asarray(layers).astype(str).tolist()
    step = math.ceil(len(columns) / MAX_COLUMNS)
    axis.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step])
    # Counted from the last row, where the answer is read, so that it is always labelled.
    named = range(len(rows))[:: -math.ceil(len(rows) / MAX_ROWS)][::-1]
    axis.set_yticks([row + 0.5 for row in named], [rows[row] for row in named])
    axis.tick_params(length=1.5, pad=1.5)
    axis.set_xlabel("layer", labelpad=1)
    return cells


def hatch_beyond(axis: Axes, values_CL: NDArray[Any], scale: float) -> None:
    """Hatches the cells of a map whose values are beyond the scale."""
    for row, column in np.argwhere(np.abs(values_CL) > scale).tolist():
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="//////", edgecolor="white", linewidth=0))


def draw_scale(cells: Any, axes: Any, height: float) -> None:
    """Draws the colour bar of a map beside panels that are `height` inches high."""
    scale = cells.norm.vmax
    # As wide as a line of text is high, however high the panel is.
    bar = cells.figure.colorbar(cells, ax=axes, ticks=[-scale, 0, scale], pad=0.02, aspect=height * POINTS / SMALL)
    bar.ax.set_yticklabels([signed(-scale), "0", signed(scale)])
    bar.ax.tick_params(length=1.5, pad=1.5)
    bar.outline.set_linewidth(0.4)
