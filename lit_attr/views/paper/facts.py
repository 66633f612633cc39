"""Single facts: a panel for each, tokens downwards and layers to the right.

Shape suffixes: L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lit_attr.views.colours import scale_of
from lit_attr.views.paper.maps import MAX_ROWS, draw_map, draw_scale, hatch_beyond
from lit_attr.views.paper.run import Run
from lit_attr.views.paper.style import INK, POINTS, SMALL, WIDTH, fit, new_figure, signed, wrapped

HATCHED = "Framed: the subject. The scale is set without the first token; hatched: beyond it."
LINE = 0.145  # inches, of a token


def draw_facts(records: Sequence[Mapping[str, Any]], run: Run) -> Figure:
    """Draws a panel for each record of the run."""
    columns = min(2, len(records))
    rows = [records[start : start + columns] for start in range(0, len(records), columns)]
    lines = [max(min(len(record["tokens"]), MAX_ROWS) for record in row) for row in rows]
    # A line for each token, and room for titles and layer numbers.
    height = sum(LINE * line + 0.9 for line in lines) + 0.5
    figure = new_figure(height, f"{run.title}: score in logits, red for the true answer. {HATCHED}")
    axes = figure.subplots(len(rows), columns, height_ratios=lines, squeeze=False).ravel()
    for axis, record, line in zip(axes, records, np.repeat(lines, columns), strict=False):
        _draw_fact(axis, record, run.component, LINE * line)
    for axis in axes[len(records) :]:
        axis.set_axis_off()
    # The layout has to find the width of the panels before their titles are wrapped to it.
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    for axis, record in zip(axes, records, strict=False):
        width = int(axis.get_position().width * WIDTH * POINTS)
        axis.set_title(_title(record, width), fontsize=SMALL, loc="left")
    return figure


def _draw_fact(axis: Axes, record: Mapping[str, Any], component: str, height: float) -> None:
    scores_TL, (start, stop) = record["scores"][component]["sum"].T, record["subject_span"]
    scale = scale_of(scores_TL)
    tokens = [fit(token, "token") for token in record["tokens"]]
    draw_scale(draw_map(axis, scores_TL, scale, record["layers"], tokens), axis, height)
    hatch_beyond(axis, scores_TL, scale)
    frame = Rectangle((0, start), scores_TL.shape[1], stop - start, fill=False, edgecolor=INK, linewidth=0.9)
    axis.add_patch(frame).set_clip_on(False)
    for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if start < place < stop else "normal")


def _title(record: Mapping[str, Any], width: int) -> str:
    true, false = (fit(record[answer].strip(), "answer") for answer in ("target_true", "target_false"))
    found = f"logit difference {signed(record['logit_diff'])} · {'not known' if record['rank_true'] else 'known'}"
    found += f" · answer token {record['step'] + 1}" if record["step"] else ""
    return wrapped(f"{fit(record['prompt'], 'prompt')} → {true} / {false}\n{found}", width)
