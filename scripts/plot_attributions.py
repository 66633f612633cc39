"""Figures for print from the records of runs: `python scripts/plot_attributions.py OUT [OUT2 ...]`.

    facts        a panel a fact: its tokens downwards, layers to the right
    roles        mean score by token role and layer, of all contrasts and of the known ones
    profiles     a curve a role over the layers with its 95% confidence band, and sums over windows of 10 layers
    relations    the map of `roles` for each of the largest relations
    comparison   with two runs or more: their profiles, a panel a role

Contrasts of a token with itself, as `step: all` can give, are left out, as in `summary.json`.

Axes: N contrasts, L layers, R roles (in the order of `ROLES`), T tokens, C rows of a map (tokens or roles).
"""

from __future__ import annotations

import argparse
import math
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from lit_attr import UserError, load_attributions
from lit_attr.facts.contrasts import ROLES, role_mask_BRT
from lit_attr.records.encoding import read_json
from lit_attr.views.heatmaps import TABLE
from lit_attr.views.labels import drawable, token_label, wrap

WIDTH = 7.0  # inches, of every figure: two columns of a journal
POINTS, SMALL = 72, 7  # of an inch; of the smaller font
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": SMALL,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    # A prompt's dollar signs are dollar signs.
    "text.parse_math": False,
    # Text stays text, which an editor can edit; and the same figure is the same file.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "lit-attr",
}
# What would put the time into the file.
UNDATED: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
FONTS = [font_manager.get_font(font_manager.findfont(name)) for name in ("DejaVu Sans", "DejaVu Sans:bold")]
# Of these, what runs to the left or stands on another letter, older versions of matplotlib put astray.
DRAWN = {
    char
    for char in map(chr, set.intersection(*(set(font.get_charmap()) for font in FONTS)))
    if unicodedata.bidirectional(char) not in ("R", "AL") and unicodedata.category(char)[0] != "M"
}
SIGNED = ListedColormap(TABLE / 255, "lit-attr")  # blue, white, red
GROUND, GREY, INK = "#eeeeee", "#c4c4c4", "#181818"
# Okabe and Ito's, safe for the colour-blind, without the faint yellow.
COLOURS = ("#999999", "#56b4e9", "#0072b2", "#d55e00", "#e69f00", "#009e73", "#000000", "#cc79a7")
DASHES = ("-", "--", "-.", ":")
CONFIDENCE = 0.95
BANDS = f"Bands: {CONFIDENCE:.0%} confidence, normal approximation over contrasts as if independent."
COLUMNS = 3  # panels of roles side by side
HATCHED = "Framed: the subject. The scale is set without the first token; hatched: beyond it."
WINDOW = 10  # layers, as many as ROME's traces restore together
MAX_ROWS, MAX_COLUMNS = 40, 8  # tokens and layers that are named; of more, every second, and so on
MAX_TEXT = {"token": 20, "prompt": 120, "answer": 32, "example": 60, "run": 40}  # characters


class Run(NamedTuple):
    """What the figures over all of a run's contrasts need."""

    folder: Path
    model: str
    title: str  # model and component, drawable
    layers_L: NDArray[np.int64]  # true layer indices
    means_NLR: NDArray[np.float32]  # each contrast's means over the tokens of a role; NaN where it has none
    known_N: NDArray[np.bool_]  # no token was more likely than the true one
    relations_N: NDArray[np.str_]  # relation ids, or empty
    prompts: dict[str, str]  # one of each relation, with … for its subject

    def only_known(self) -> Run:
        """The run as if it had no other contrasts."""
        if not self.known_N.any():
            raise UserError(f"--known: {self.folder} has no known fact; leave the option out")
        arrays = {name: getattr(self, name)[self.known_N] for name in ("means_NLR", "known_N", "relations_N")}
        return self._replace(**arrays)


class Estimate(NamedTuple):
    """Means over contrasts."""

    mean_LR: NDArray[np.float64]  # NaN where no contrast has the role
    half_LR: NDArray[np.float64]  # half the width of their confidence intervals; NaN where not two have it
    count_R: NDArray[np.int64]  # how many have it


def records_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The contrasts of two different tokens."""
    for record in load_attributions(folder):
        if record["true_token_id"] != record["false_token_id"]:
            yield record


def read_run(folder: Path) -> Run:
    """Reads a run, one batch file in memory at a time."""
    means, known, relations = [], [], []
    prompts: dict[str, str] = {}
    for record in records_of(folder):
        # By contrast, not in the metric behind summary.json: relations and windows are taken from them later.
        mask_RT = role_mask_BRT([record["roles"]], [record["subject_span"]])[0].numpy()
        with np.errstate(invalid="ignore"):
            means_LR = record["scores"]["sum"] @ mask_RT.T / mask_RT.sum(1)
        means.append(means_LR.astype(np.float32))
        known.append(record["rank_true"] == 0)
        relations.append(record["relation_id"])
        prompts.setdefault(record["relation_id"], record["prompt"].replace(record["subject"], "…"))
    if not means:
        raise UserError(f"{folder}: there is no contrast of two different tokens in it; give another folder")
    model = Path(read_json(folder / "manifest.json").get("model", {}).get("model_name") or "model").name
    title, layers_L = fit(f"{model} {record['component']}", "run"), np.array(record["layers"])
    return Run(folder, model, title, layers_L, np.stack(means), np.array(known), np.array(relations), prompts)


def pick_facts(run: Run, count: int, ids: Sequence[str], *, known: bool) -> list[dict[str, Any]]:
    """Records evenly spread over the run, the shortest first; or those of the ids, in the ids' order."""
    if ids:
        found = [record for record in records_of(run.folder) if str(record["id"]) in ids]
        if missing := set(ids) - {str(record["id"]) for record in found}:
            raise UserError(f"--ids: {run.folder} has no contrast of {', '.join(sorted(missing))}")
        return sorted(found, key=lambda record: (ids.index(str(record["id"])), record["step"]))
    eligible = np.flatnonzero(run.known_N) if known else np.arange(len(run.known_N))
    spread = np.linspace(0, len(eligible) - 1, min(count, len(eligible))).round().astype(int)
    chosen = set(eligible[spread].tolist())
    records = [record for place, record in enumerate(records_of(run.folder)) if place in chosen]
    return sorted(records, key=lambda record: len(record["tokens"]))


def estimate(values_NLR: NDArray[np.floating]) -> Estimate:
    """Mean and confidence interval of each layer and role, over the contrasts that have the role."""
    count_R = (~np.isnan(values_NLR[:, 0])).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_LR = np.nansum(values_NLR, 0, dtype=np.float64) / count_R
        variance_LR = np.nansum((values_NLR - mean_LR) ** 2, 0) / np.where(count_R > 1, count_R - 1, np.nan)
    quantile = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return Estimate(mean_LR, quantile * np.sqrt(variance_LR / count_R), count_R)


def window_sums(means_NLR: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over the layers from l - 5 to l + 4: ROME's windows, cut off where the layers end."""
    starts = range(-(WINDOW // 2), means_NLR.shape[1] - WINDOW // 2)
    return np.stack([means_NLR[:, max(0, start) : start + WINDOW].sum(1) for start in starts], 1)


def fit(text: str, kind: str) -> str:
    """Text that matplotlib's own font draws, escaped where it cannot; a long one loses its middle to `…`."""
    label = token_label(text) if kind == "token" else drawable(text)
    pieces = [char if char in DRAWN else char.encode("unicode_escape").decode() for char in label]
    length, most = sum(map(len, pieces)), MAX_TEXT[kind]
    if length > most:
        while length >= most:
            length -= len(pieces.pop(len(pieces) // 2))
        pieces.insert((len(pieces) + 1) // 2, "…")
    return "".join(pieces)


def draw_facts(records: Sequence[dict[str, Any]], title: str) -> Figure:
    """A panel a fact."""
    columns = min(2, len(records))
    rows = [records[start : start + columns] for start in range(0, len(records), columns)]
    lines = [max(min(len(record["tokens"]), MAX_ROWS) for record in row) for row in rows]
    # A line a token, and room for titles and layer numbers.
    height = sum(0.145 * line + 0.9 for line in lines) + 0.5
    figure = _figure(height, f"{title}: score in logits, red for the true answer. {HATCHED}")
    axes = figure.subplots(len(rows), columns, height_ratios=lines, squeeze=False).ravel()
    for axis, record, line in zip(axes, records, np.repeat(lines, columns), strict=False):
        _draw_fact(axis, record, 0.145 * line)
    for axis in axes[len(records) :]:
        axis.set_axis_off()
    # Titles are as wide as the panels, which the layout has to find first.
    figure.draw_without_rendering()
    for axis, record in zip(axes, records, strict=False):
        width = int(axis.get_position().width * WIDTH * POINTS)
        axis.set_title(_fact_title(record, width), fontsize=SMALL, loc="left")
    return figure


def _draw_fact(axis: Axes, record: dict[str, Any], height: float) -> None:
    scores_TL, (start, stop) = record["scores"]["sum"].T, record["subject_span"]
    scale = _scale(scores_TL[1:]) or _scale(scores_TL) or 1.0
    tokens = [fit(token, "token") for token in record["tokens"]]
    _draw_scale(_draw_map(axis, scores_TL, scale, record["layers"], tokens), axis, height)
    for token, layer in np.argwhere(np.abs(scores_TL) > scale).tolist():
        axis.add_patch(Rectangle((layer, token), 1, 1, fill=False, hatch="//////", edgecolor="white", linewidth=0))
    frame = Rectangle((0, start), scores_TL.shape[1], stop - start, fill=False, edgecolor=INK, linewidth=0.9)
    axis.add_patch(frame).set_clip_on(False)
    for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if start < place < stop else "normal")


def _fact_title(record: dict[str, Any], width: int) -> str:
    true, false = (fit(record[answer].strip(), "answer") for answer in ("target_true", "target_false"))
    found = f"logit difference {_signed(record['logit_diff'])} · {'not known' if record['rank_true'] else 'known'}"
    found += f" · answer token {record['step'] + 1}" if record["step"] else ""
    return _wrapped(f"{fit(record['prompt'], 'prompt')} → {true} / {false}\n{found}", width)


def draw_roles(run: Run) -> Figure:
    """The mean of all contrasts and of the known ones, on one scale."""
    estimates = [estimate(run.means_NLR), estimate(run.means_NLR[run.known_N])]
    rows = [[f"{role}\nn = {n:,}" for role, n in zip(ROLES, each.count_R, strict=True)] for each in estimates]
    return _draw_role_maps(run, ["all contrasts", "known facts"], estimates, rows)


def draw_relations(run: Run, count: int) -> Figure:
    """The map of `draw_roles` for each of the largest relations, on one scale."""
    sizes = Counter(relation for relation in run.relations_N.tolist() if relation)
    # Of the same size, in the order of their names, whatever the order of the batches.
    relations = sorted(sizes, key=lambda relation: (-sizes[relation], relation))[:count]
    estimates = [estimate(run.means_NLR[run.relations_N == relation]) for relation in relations]
    heads = [f"{fit(relation, 'answer')} (n = {sizes[relation]:,})" for relation in relations]
    titles = [f"{head}\n{fit(run.prompts[name], 'example')}" for head, name in zip(heads, relations, strict=True)]
    rows = [[role if place % COLUMNS == 0 else "" for role in ROLES] for place in range(len(relations))]
    return _draw_role_maps(run, titles, estimates, rows)


def _draw_role_maps(run: Run, titles: list[str], each: list[Estimate], rows: list[list[str]]) -> Figure:
    columns, lines = min(COLUMNS, len(titles)), math.ceil(len(titles) / COLUMNS)
    figure = _figure(2.3 * lines + 0.3, f"{run.title}: mean score in logits. n: contrasts. Grey: no such token.")
    axes = figure.subplots(lines, columns, squeeze=False)
    scale = max(_scale(mean_LR) for mean_LR, _, _ in each) or 1.0
    width = int((WIDTH - 1.7) / columns * POINTS)  # less the roles' names and the scale
    for axis, title, (mean_LR, _, _), names in zip(axes.flat, titles, each, rows, strict=False):
        cells = _draw_map(axis, mean_LR.T, scale, run.layers_L, names)
        axis.set_title(_wrapped(title, width), fontsize=SMALL)
    for axis in axes.flat[len(titles) :]:
        axis.set_axis_off()
    _draw_scale(cells, axes, 1.8 * lines)
    return figure


def draw_profiles(run: Run) -> Figure:
    """A curve a role; beside it the sums over windows, where there are layers enough that follow each other."""
    panels = {"score of a layer": estimate(run.means_NLR)}
    if len(run.layers_L) >= WINDOW and (np.diff(run.layers_L) == 1).all():
        panels[f"sum over the {WINDOW} layers around it"] = estimate(window_sums(run.means_NLR))
    figure = _figure(4.2, f"{run.title}. The last token has its own scale. {BANDS}")
    # Much of the score is the last token's: on one scale with it, the others could not be told apart.
    axes = figure.subplots(2, len(panels), sharex=True, height_ratios=(3, 2), squeeze=False)
    for column, (name, each) in zip(axes.T, panels.items(), strict=True):
        for place, (role, count) in enumerate(zip(ROLES, each.count_R, strict=True)):
            axis = column[int(role == "last")]
            _draw_curve(axis, run.layers_L, each, place, f"{role} (n = {count:,})", COLOURS[place], "-")
        column[0].set_title(name)
        column[1].set_xlabel("layer")
        column[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("other roles")
    axes[1, 0].set_ylabel("last")
    handles = [handle for axis in axes[:, 0] for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    figure.supylabel("mean score (logits)")
    return figure


def draw_comparison(runs: Sequence[Run], names: Sequence[str]) -> Figure:
    """A panel a role, a curve a run."""
    # A model has its layers' numbers, whichever of them were scored.
    same = len({run.model for run in runs}) == 1 or len({run.layers_L.max() for run in runs}) == 1
    across = "layer" if same else "relative depth, layer / last layer scored"
    figure = _figure(4.2, f"Across: {across}. Each role has its own scale. {BANDS}")
    axes = figure.subplots(2, 4).flat
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        x_L, each = run.layers_L / (1 if same else run.layers_L.max().clip(1)), estimate(run.means_NLR)
        look = COLOURS[(number + 2) % len(COLOURS)], DASHES[number % len(DASHES)]
        for place, role in enumerate(ROLES):
            _draw_curve(axes[place], x_L, each, place, f"{name} (n = {len(run.means_NLR):,})", *look)
            axes[place].set_title(role)
            axes[place].xaxis.set_major_locator(MaxNLocator(4, integer=same, steps=[1, 2, 5, 10]))
    axes[len(ROLES)].set_axis_off()
    figure.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside upper center", ncols=2)
    figure.supylabel("mean score (logits)")
    return figure


def _figure(height: float, note: str) -> Figure:
    # Not pyplot's, which keeps every figure and may want a display.
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    note = _wrapped(note, int((WIDTH - 0.3) * POINTS))
    figure.supxlabel(note, fontsize=SMALL, x=0.02, ha="left")
    return figure


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for paragraph in text.splitlines() for line in wrap(paragraph, SMALL, width))


def _draw_map(axis: Axes, values_CL: NDArray[Any], scale: float, layers: ArrayLike, rows: list[str]) -> QuadMesh:
    # Where there is no number, the ground is seen.
    axis.patch.set(facecolor=GROUND, hatch="/////", edgecolor=GREY, linewidth=0)
    cells = axis.pcolormesh(np.ma.masked_invalid(values_CL), cmap=SIGNED, vmin=-scale, vmax=scale)
    # Edges of the cells' own colours, or viewers show the seams between them.
    cells.set(edgecolor="face", linewidth=0.1)
    axis.set_ylim(len(values_CL), 0)
    columns = np.asarray(layers).astype(str).tolist()
    step = math.ceil(len(columns) / MAX_COLUMNS)
    axis.set_xticks(np.arange(0, len(columns), step) + 0.5, columns[::step])
    # The last one, where the answer is read, is named in any case.
    named = range(len(rows))[:: -math.ceil(len(rows) / MAX_ROWS)][::-1]
    axis.set_yticks([row + 0.5 for row in named], [rows[row] for row in named])
    axis.tick_params(length=1.5, pad=1.5)
    axis.set_xlabel("layer", labelpad=1)
    return cells


def _draw_scale(cells: Any, axes: Any, height: float) -> None:
    scale = cells.norm.vmax
    # As wide as a line of text is high, however tall the panel.
    bar = cells.figure.colorbar(cells, ax=axes, ticks=[-scale, 0, scale], pad=0.02, aspect=height * POINTS / SMALL)
    bar.ax.set_yticklabels([_signed(-scale), "0", _signed(scale)])
    bar.ax.tick_params(length=1.5, pad=1.5)
    bar.outline.set_linewidth(0.4)


def _draw_curve(axis: Axes, x_L: NDArray[Any], each: Estimate, role: int, label: str, *look: str) -> None:
    mean_L, half_L, (colour, dash) = each.mean_LR[:, role], each.half_LR[:, role], look
    axis.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    # Of one layer the band has no width.
    bars, marker = half_L if len(x_L) == 1 else None, "o" if len(x_L) <= WINDOW else ""
    axis.errorbar(x_L, mean_L, bars, color=colour, linestyle=dash, marker=marker, label=label, lw=1.1, ms=2.5)
    axis.fill_between(x_L, mean_L - half_L, mean_L + half_L, color=colour, alpha=0.22, linewidth=0)


def _scale(values: NDArray[np.floating]) -> float:
    """The largest magnitude; 0 if there is none."""
    return float(np.nan_to_num(np.abs(values)).max(initial=0.0))


def _signed(number: float) -> str:
    return f"{number:+#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def draw_all(runs: Sequence[Run], options: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """Every figure there is to draw, by its path within their folder and without its ending."""
    folders = [run.folder.resolve().name for run in runs]
    if len(set(folders)) < len(folders):
        folders = [f"{place}-{name}" for place, name in enumerate(folders, 1)]
    shown = [run.only_known() if options.known else run for run in runs]
    for run, taken, name in zip(runs, shown, folders, strict=True):
        folder = f"{name}/" if len(runs) > 1 else ""
        if facts := pick_facts(run, options.facts, options.ids, known=options.known):
            yield f"{folder}facts", draw_facts(facts, run.title)
        yield f"{folder}roles", draw_roles(run)
        yield f"{folder}profiles", draw_profiles(taken)
        if options.relations and any(taken.relations_N):
            yield f"{folder}relations", draw_relations(taken, options.relations)
    if len(runs) > 1:
        titles = [run.title for run in runs]
        names = titles if len(set(titles)) == len(titles) else [fit(name, "run") for name in folders]
        yield "comparison", draw_comparison(shown, names)


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="plot_attributions", description="Figures for print from runs' records.")
    add = parser.add_argument
    add("out", nargs="+", type=Path, metavar="OUT", help="output folder of a run")
    add("--figures", type=Path, metavar="DIR", help="folder to write to (default: plots in the first OUT)")
    add("--format", choices=UNDATED, default="pdf", help="(default: %(default)s)")
    add("--facts", type=int, choices=range(25), default=6, metavar="N", help="spread over the run (default: 6)")
    add("--ids", nargs="+", default=[], metavar="ID", help="these facts instead")
    add("--relations", type=int, choices=range(25), default=6, metavar="N", help="the largest (default: 6)")
    add("--known", action="store_true", help="known facts only; `roles` has both in any case, and ids go before")
    options = parser.parse_args(args)
    target = options.figures or options.out[0] / "plots"
    try:
        with mpl.rc_context(STYLE):
            for name, figure in draw_all([read_run(folder) for folder in options.out], options):
                path = target / f"{name}.{options.format}"
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=300, metadata=UNDATED[options.format])
                print(path)
    except (UserError, OSError) as error:
        print(f"plot_attributions: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
