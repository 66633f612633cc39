"""The closing lines of a run: what it found and where its files are."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from lit_attr.evaluation.agreement import verdict
from lit_attr.evaluation.formats import format_lines
from lit_attr.evaluation.summary import strongest_at, strongest_cells
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
    cells = [cell for cells in strongest_cells(summary["profile"]).values() for cell in cells]
    strongest = sorted(cells, key=lambda cell: -abs(cell[0]))[:3]
    found = "; ".join(f"layer {layer} at {role} {score:+.3f}" for score, layer, role in strongest) or "none"
    for score, layer, _ in strongest_at(summary["profile"], POSITION_0, 1):
        found += f"; at position 0 (often an attention sink): layer {layer} {score:+.3f}"
    earlier = "" if resumed is None else f" ({resumed} from an earlier run)"
    reasons = f" (reasons: {run.rejected})" if summary["rejected"] else ""
    lines = [
        f"contrasts: {summary['contrasts']}{earlier}, rows refused: {summary['rejected']}{reasons}",
        f"contrast accuracy (true answer above the false one): {_percent(summary['contrast_accuracy'])}",
        f"known facts (true answer above every other token): {_percent(summary['known_share'])}",
        f"strongest mean scores, in logits: {found}",
    ]
    if summary["agreement"] is not None:
        lines.append(f"agreement: {verdict(summary['agreement'])}")
    gradient = settings.get("gradient") if settings.get("rule") != "exact" else None
    if gradient:
        lines.append(f"scores are approximate: the gradient is taken {gradient}")
    # Those that were refused while the model ran.
    lines.extend(format_lines(settings, len(read_refused(run.rejected))))
    lines.append(f"records: {run.batches}")
    if pictures:
        # The commands of an environment that is not activated are not on the path.
        command = "tensorboard" if shutil.which("tensorboard") else f"{sys.executable} -m tensorboard.main"
        lines.append(f"heatmaps: {command} --logdir {shlex.quote(str(run.path))} --samples_per_plugin images=100")
    elif run.figures.exists():
        lines.append(f"heatmaps: {run.figures}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "no contrasts" if share is None else f"{share:.1%}"
