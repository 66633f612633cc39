"""The closing lines of a run: what it found and where its files are."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_attr.evaluation.formats import format_lines
from lit_attr.evaluation.strongest import all_exact, has_effects, mean_text, strongest_at, strongest_cells
from lit_attr.evaluation.summary import by_component
from lit_attr.evaluation.validity.agreement import promise_line, verdict
from lit_attr.facts.roles import POSITION_0
from lit_attr.records.folder import RunFolder
from lit_attr.records.rejected import read_refused


def closing_lines(folder: str | Path, *, pictures: bool, resumed: int | None = None) -> str:
    """Says in a few lines for the terminal what a run found and where its files are.

    Args:
        folder: The run's folder, with its summary.
        pictures: Whether TensorBoard has pictures of the run.
        resumed: How many contrasts earlier runs have scored, where that is known.
    """
    run = RunFolder(folder)
    summary = run.read_summary()
    if summary is None:
        return f"records: {run.batches}"
    settings = run.read_manifest()["model"]
    earlier = "" if resumed is None else f" ({resumed} from an earlier run)"
    reasons = f" (reasons: {run.rejected})" if summary["rejected"] else ""
    lines = [
        f"contrasts: {summary['contrasts']}{earlier}, rows refused: {summary['rejected']}{reasons}",
        f"contrast accuracy (true answer above the false one): {_percent(summary['contrast_accuracy'])}",
        f"known facts (true answer above every other token): {_percent(summary['known_share'])}",
    ]
    if "left_out" in summary:
        total = summary["left_out"] + summary["contrasts"]
        only = settings["only"]
        lines.insert(
            1, f"left out: {summary['left_out']} of {total} contrasts are not {only} (all answers: {run.screened})"
        )
    components = by_component(summary)
    for component, found in components.items():
        # A single component needs no name.
        of = f" of {component}" if len(components) > 1 else ""
        lines.extend(_strongest_means(found["profile"], of))
        if found["agreement"] is not None:
            lines.append(f"agreement{of}: {verdict(found['agreement'])}")
            lines.extend(_windows(found["agreement"], of))
    if summary["adaptive"] is not None:
        lines.append(f"adaptive: {promise_line(summary['adaptive'], summary['agreement'])}")
    gradient = settings.get("gradient") if settings.get("rule") != "exact" else None
    if gradient:
        lines.append(f"scores are approximate: the gradient is taken {gradient}")
    # Those that were refused while the model ran.
    lines.extend(format_lines(settings, len(read_refused(run.rejected))))
    lines.append(f"records: {run.batches}")
    if pictures:
        # The commands of an environment that is not activated are not on the path.
        command = "tensorboard" if shutil.which("tensorboard") else f"{sys.executable} -m tensorboard.main"
        lines.append(f"heatmaps: {command} --logdir {shlex.quote(str(run.path))}")
    elif run.figures.exists():
        lines.append(f"heatmaps: {run.figures}")
    return "\n".join(lines)


def _strongest_means(profile: Mapping[str, Any], of: str) -> Iterator[str]:
    """Where the means over all contrasts are largest: of exact effects where the run has them, else of scores."""
    if not has_effects(profile):
        yield f"strongest mean scores{of} (estimates), in logits: {_strongest(profile, 'mean_score') or 'none'}"
        return
    unit = "in logits, exact effects of all facts" if all_exact(profile) else "in logits, 95% interval"
    found = _strongest(profile, "mean_effect") or "none whose interval excludes 0"
    yield f"strongest mean effects{of}, {unit}: {found}"
    if found := _strongest(profile, "mean_magnitude"):
        yield f"largest mean magnitudes of effects{of}, {unit}: {found}"


def _windows(agreement: Mapping[str, Any], of: str) -> Iterator[str]:
    """How far sums of scores estimate the effects of several layers together, where these are computed."""
    windows = agreement.get("windows")
    if windows is not None and windows["pearson"] is not None:
        ends = windows["interval"]
        interval = "" if ends is None else f" (95% interval {ends[0]:.2f} to {ends[1]:.2f})"
        yield (
            f"windows of {windows['size']} layers{of}: r = {windows['pearson']:.2f}{interval} between their "
            "effects and the sums of their scores"
        )


def _strongest(profile: Mapping[str, Any], measure: str) -> str:
    """The three largest means outside position 0, and the largest one there."""
    cells = [cell for cells in strongest_cells(profile, 3, measure).values() for cell in cells]
    parts = [
        f"layer {cell[1]} at {cell[2]} {mean_text(profile, cell, measure)}"
        for cell in sorted(cells, key=lambda cell: -abs(cell[0]))[:3]
    ]
    for cell in strongest_at(profile, POSITION_0, 1, measure):
        sink = f"at {POSITION_0} (often an attention sink)"
        parts.append(f"{sink}: layer {cell[1]} {mean_text(profile, cell, measure)}")
    return "; ".join(parts)


def _percent(share: float | None) -> str:
    return "no contrasts" if share is None else f"{share:.1%}"
