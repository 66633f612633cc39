"""What a run found, counted while it goes on.

Axes: B contrasts, L layers, R roles, T tokens.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.callbacks.metrics import AnswerCounts, RoleLayerProfile
from lit_attr.evaluation.agreement import verdict
from lit_attr.facts.contrasts import ROLES, role_mask_BRT
from lit_attr.records.encoding import FORMAT_VERSION, read_json


class RunSummary:
    """Counts, accuracy and role × layer profile of the contrasts of one run and of what it went on from.

    A contrast of a token with itself, as `step: all` can give, tells nothing apart and is left out.

    Args:
        layers: The layers of the scores, in their order.
        component: What the scores are of.
        rule: How they were computed.
    """

    def __init__(self, layers: Sequence[int], component: str, rule: str) -> None:
        self.layers = tuple(layers)
        self.component = component
        self.rule = rule
        self.answers = AnswerCounts()
        self.profile = RoleLayerProfile(len(self.layers))
        self.known_profile = RoleLayerProfile(len(self.layers))

    def add_batch(self, batch: AttributionBatch) -> None:
        """Counts a batch."""
        contrasts = batch.contrasts
        self._add(
            batch.scores_sum_BLT,
            [contrast.roles for contrast in contrasts],
            [contrast.subject_span for contrast in contrasts],
            batch.logit_true_B - batch.logit_false_B,
            batch.rank_true_B,
            [contrast.told_apart for contrast in contrasts],
        )

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Counts the object of a batch file."""
        examples = record["examples"]
        # Token-major for pad_sequence, then back.
        scores_TL = [torch.as_tensor(example["scores"]["sum"], dtype=torch.float32).T for example in examples]
        self._add(
            torch.nn.utils.rnn.pad_sequence(scores_TL, batch_first=True).transpose(1, 2),
            [example["roles"] for example in examples],
            [example["subject_span"] for example in examples],
            torch.tensor([example["logit_diff"] for example in examples]),
            torch.tensor([example["rank_true"] for example in examples]),
            [example["true_token_id"] != example["false_token_id"] for example in examples],
        )

    def to(self, device: torch.device) -> None:
        """Moves the counts, to where processes can exchange them."""
        self.answers.to(device)
        self.profile.to(device)
        self.known_profile.to(device)

    def compute(self, *, together: bool = True) -> dict[str, Any]:
        """The summary in JSON types.

        Args:
            together: Of all processes, which all must ask then; otherwise of this one's share so far.
        """
        total, preferred, known = _compute(self.answers, together)
        return {
            "format": "lit-attr/summary",
            "version": FORMAT_VERSION,
            "contrasts": total,
            "contrast_accuracy": preferred / total if total else None,
            "known": known,
            "known_share": known / total if total else None,
            "profile": self._profile(self.profile, together),
            "known_profile": self._profile(self.known_profile, together),
        }

    def _profile(self, metric: RoleLayerProfile, together: bool) -> dict[str, Any]:
        mean_LR, error_LR, count_R = _compute(metric, together)
        return {
            "component": self.component,
            "rule": self.rule,
            "layers": self.layers,
            "roles": ROLES,
            "contrasts": count_R.tolist(),
            "mean_score": _without_nan(mean_LR),
            "standard_error": _without_nan(error_LR),
        }

    def _add(
        self,
        scores_BLT: Tensor,
        roles: Sequence[Sequence[str]],
        subject_spans: Sequence[Sequence[int]],
        logit_diff_B: Tensor,
        rank_true_B: Tensor,
        told_apart: Sequence[bool],
    ) -> None:
        told_apart_B = torch.tensor(told_apart)
        self.answers.update(logit_diff_B[told_apart_B], rank_true_B[told_apart_B])
        mask_BRT = role_mask_BRT(roles, subject_spans)
        # Padding is in no role, but a batch may be padded further than its longest contrast left in it.
        for metric, counted_B in (
            (self.profile, told_apart_B),
            (self.known_profile, told_apart_B & (rank_true_B == 0)),
        ):
            metric.update(scores_BLT[counted_B, :, : mask_BRT.shape[-1]], mask_BRT[counted_B])


def _compute(metric: Metric, together: bool) -> Any:
    # A metric's own `compute` waits for all processes; that of its class does not.
    return metric.compute() if together else type(metric).compute(metric)


def _without_nan(values_LR: Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values_LR.tolist()]


def strongest_cells(profile: Mapping[str, Any], count: int = 3) -> dict[str, list[tuple[float, int, str]]]:
    """For each role, its layers with the largest mean scores of either sign: score, layer, role."""
    cells: dict[str, list[tuple[float, int, str]]] = {role: [] for role in profile["roles"]}
    for layer, row in zip(profile["layers"], profile["mean_score"], strict=True):
        for role, score in zip(profile["roles"], row, strict=True):
            if score is not None:
                cells[role].append((score, layer, role))
    return {role: sorted(found, key=lambda cell: -abs(cell[0]))[:count] for role, found in cells.items() if found}


def describe(folder: Path, *, pictures: bool) -> str:
    """What a run found and where it is, in a few lines for the terminal.

    Args:
        folder: The run's output.
        pictures: Whether TensorBoard has pictures of it.
    """
    summary = read_json(folder / "summary.json")
    cells = [cell for cells in strongest_cells(summary["profile"]).values() for cell in cells]
    strongest = sorted(cells, key=lambda cell: -abs(cell[0]))[:3]
    found = "; ".join(f"layer {layer} at {role} {score:+.3f}" for score, layer, role in strongest)
    settings = read_json(folder / "manifest.json")["model"]
    gradient = settings.get("gradient") if settings.get("rule") != "exact" else None
    lines = [
        f"contrasts: {summary['contrasts']} ({summary['resumed']} from an earlier run), rows refused: "
        f"{summary['rejected']}" + (f" (reasons: {folder / 'rejected.jsonl'})" if summary["rejected"] else ""),
        f"contrast accuracy (true answer above the false one): {_percent(summary['contrast_accuracy'])}",
        f"known facts (true answer above every other token): {_percent(summary['known_share'])}",
        f"strongest mean scores, in logits: {found}",
        *([f"trust: {verdict(summary['trust'])}"] if summary.get("trust") else []),
        *([f"scores are approximate: the gradient is taken {gradient}"] if gradient else []),
        f"records: {folder / 'batches'}",
    ]
    if pictures:
        # An environment that is not activated has its commands off the path.
        command = "tensorboard" if shutil.which("tensorboard") else f"{sys.executable} -m tensorboard.main"
        lines.append(f"heatmaps: {command} --logdir {shlex.quote(str(folder))} --samples_per_plugin images=100")
    elif (folder / "figures").exists():
        lines.append(f"heatmaps: {folder / 'figures'}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "none to count" if share is None else f"{share:.1%}"
