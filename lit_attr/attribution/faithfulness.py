"""Faithfulness of a ranking: what becomes of the logit difference without its top cells, and with nothing else.

A cell is a layer at a token of a contrast. Axes: B contrasts, R rankings, P percentages (in the order of
`PERCENT`), V versions of one contrast with different cells removed, L chosen layers, T tokens, N cells, H width of
the component's output.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import PreTrainedModel

from lit_attr.attribution.gradient import check_inputs, difference_B, only_last_logits
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast, ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, replace_first, undisturbed
from lit_attr.models.location import Location

Ranking = Literal["scores", "exact", "random"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
# How many of a contrast's cells count as the top, in percent.
PERCENT = (1, 2, 5, 10, 20, 50)
# Bounds memory: versions × tokens that go through a layer together, as in `exact_effects_BLT`.
MAX_TOKENS = 8192


class Curves(NamedTuple):
    """What rankings come to in each contrast, in logits: float32, float64 where the model is; on the CPU.

    Attributes:
        logit_diff_B: logit_true − logit_false of the whole model.
        comprehensiveness_BRP: What that loses without the top cells: much, where the ranking is faithful.
        sufficiency_BRP: What it loses with nothing but the top cells: little, where the ranking is faithful.
    """

    logit_diff_B: Tensor
    comprehensiveness_BRP: Tensor
    sufficiency_BRP: Tensor


@torch.inference_mode(False)
@torch.no_grad()
def faithfulness_curves(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, rankings: Sequence[Tensor]
) -> Curves:
    """Comprehensiveness and sufficiency of rankings of cells, by the percentage of cells that counts as the top.

    `comprehensiveness[k] = diff − diff without the top k%`, `sufficiency[k] = diff − diff with only the top k%`:
    as in ERASER (DeYoung et al., 2020, arXiv:1911.03429), but of the logit difference in the place of a class's
    probability, and of writes in the place of tokens: what is left out is set to zero. The top k% are the
    ⌈k/100 · layers · tokens⌉ cells with the largest signed scores, those that speak most for the true answer; of
    equal ones the lower layer's goes first, then the earlier token's.

    All versions of a contrast go through the model together, and no other contrast with them: no row has padding,
    and none depends on its batch.

    Args:
        model: A causal language model.
        location: The modules whose outputs are the writes.
        batch: The contrasts, on the device of the model's embeddings.
        rankings: Scores for each, axes contrast × layer (as `location.layers`) × token; what they have at padding
            or beyond is not looked at.

    Raises:
        UserError: A token id has no embedding in the model, the context is longer than its positions, or a
            ranking has another shape.
    """
    check_inputs(model, batch)
    rows, tokens = batch.token_ids_BT.shape
    for scores_BLT in rankings:
        if scores_BLT.shape[:2] != (rows, len(location.layers)) or scores_BLT.shape[2] < tokens:
            raise UserError(
                f"rankings: the shape {list(scores_BLT.shape)} is not {rows} contrasts × "
                f"{len(location.layers)} layers × {tokens} tokens"
            )
    with undisturbed(model, batch.token_ids_BT.device):
        curves = []
        for row, length in enumerate((batch.last_B + 1).tolist()):
            scores_RLT = torch.stack([scores_BLT[row, :, :length].cpu() for scores_BLT in rankings])
            alone = batch.select([row])
            alone = alone._replace(token_ids_BT=alone.token_ids_BT[:, :length])
            curves.append(_curves_of_one(model, location, alone, scores_RLT))
    return Curves(*(torch.stack(part) for part in zip(*curves, strict=True)))


def random_scores_BLT(contrasts: Sequence[Contrast], layers: int) -> Tensor:
    """Scores that rank the cells of each contrast at random: by its key, the same in every batch and process."""
    scores_BLT = torch.zeros(len(contrasts), layers, max(len(contrast.token_ids) for contrast in contrasts))
    for row, contrast in enumerate(contrasts):
        seed = int.from_bytes(hashlib.sha256(repr(contrast.key).encode()).digest()[:8], "big")
        length = len(contrast.token_ids)
        scores_BLT[row, :, :length] = torch.rand(layers, length, generator=torch.Generator().manual_seed(seed))
    return scores_BLT


def _curves_of_one(
    model: PreTrainedModel, location: Location, alone: ContrastBatch, scores_RLT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The logit difference of one contrast, and its two curves of each ranking, [R, P]."""
    rankings, *cells = scores_RLT.shape
    scores_RN = scores_RLT.flatten(1)
    counts_P = torch.tensor([-(-percent * scores_RN.shape[1] // 100) for percent in PERCENT])
    places_RN = scores_RN.argsort(stable=True, descending=True).argsort()
    is_top_RPN = places_RN[:, None] < counts_P[:, None]
    versions_VN = torch.cat([torch.zeros_like(is_top_RPN[0, :1]), *is_top_RPN, *~is_top_RPN])
    diffs = [
        _diff_without_V(model, location, alone, is_removed_VLT)
        for is_removed_VLT in versions_VN.unflatten(1, cells).split(max(1, MAX_TOKENS // cells[1]))
    ]
    diff, *others = torch.cat(diffs).cpu().split([1, rankings * len(PERCENT), rankings * len(PERCENT)])
    without_RP, with_only_RP = (diff_V.unflatten(0, (rankings, len(PERCENT))) for diff_V in others)
    return diff[0], diff - without_RP, diff - with_only_RP


def _diff_without_V(
    model: PreTrainedModel, location: Location, alone: ContrastBatch, is_removed_VLT: Tensor
) -> Tensor:
    """The logit difference of one contrast with the writes of some cells set to zero, for each version."""
    versions = alone.select([0] * len(is_removed_VLT))

    def remove(place: int, output: Any) -> Any:
        hidden = first_tensor(output)
        is_removed_VT1 = is_removed_VLT[:, place, :, None].to(hidden.device)
        # Some modules take the tokens of all rows in one axis.
        write_VTH = hidden.reshape(*is_removed_VT1.shape[:2], -1)
        return replace_first(output, write_VTH.masked_fill(is_removed_VT1, 0).reshape(hidden.shape))

    with outputs_changed(location.modules, remove), only_last_logits(model, versions.last_B):
        return difference_B(model(input_ids=versions.token_ids_BT, use_cache=False).logits, versions)


class CurveSums(Metric):
    """Curves of contrasts in sums that processes add up."""

    full_state_update = False
    contrasts: Tensor
    logit_diff: Tensor
    comprehensiveness_RP: Tensor
    sufficiency_RP: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("contrasts", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("logit_diff", torch.tensor(0, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("comprehensiveness_RP", "sufficiency_RP"):
            zeros_RP = torch.zeros(len(RANKINGS), len(PERCENT), dtype=torch.float64)
            self.add_state(name, zeros_RP, dist_reduce_fx="sum")

    def update(self, curves: Curves) -> None:
        """Adds contrasts."""
        self.contrasts += len(curves.logit_diff_B)
        self.logit_diff += curves.logit_diff_B.to(self.logit_diff).sum()
        self.comprehensiveness_RP += curves.comprehensiveness_BRP.to(self.comprehensiveness_RP).sum(0)
        self.sufficiency_RP += curves.sufficiency_BRP.to(self.sufficiency_RP).sum(0)

    def compute(self) -> tuple[int, Tensor, Tensor, Tensor]:
        """How many contrasts there are, and their mean logit difference, comprehensiveness and sufficiency."""
        sums = (self.logit_diff, self.comprehensiveness_RP, self.sufficiency_RP)
        logit_diff, comprehensiveness_RP, sufficiency_RP = (each / self.contrasts for each in sums)
        return int(self.contrasts), logit_diff, comprehensiveness_RP, sufficiency_RP


class FaithfulnessReport(nn.Module):
    """Mean curves over contrasts of three rankings: by the scores, by the exact effects, and at random.

    Processes share the sums by torchmetrics.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums = CurveSums()

    def update(self, curves: Curves) -> None:
        """Adds contrasts.

        Args:
            curves: Theirs, of the rankings in the order of `RANKINGS`.
        """
        self.sums.update(curves)

    def compute(self) -> dict[str, Any]:
        """The report of all processes in JSON types; None where there is no contrast. All must ask.

        `aopc` is the plain mean over the percentages, as in the code of ERASER (`rationale_benchmark/metrics.py`).
        """
        with warnings.catch_warnings():
            # Of a process that has had no contrast.
            warnings.simplefilter("ignore")
            contrasts, logit_diff, comprehensiveness_RP, sufficiency_RP = self.sums.compute()
        return {
            "contrasts": contrasts,
            "replacement": "zero",
            "logit_diff": _number(logit_diff),
            "percent": list(PERCENT),
            "comprehensiveness": _by_ranking(comprehensiveness_RP),
            "sufficiency": _by_ranking(sufficiency_RP),
        }


def _by_ranking(mean_RP: Tensor) -> dict[str, dict[str, Any]]:
    return {
        ranking: {"curve": [_number(mean) for mean in mean_P], "aopc": _number(mean_P.mean())}
        for ranking, mean_P in zip(RANKINGS, mean_RP, strict=True)
    }


def _number(mean: Tensor) -> float | None:
    return mean.item() if math.isfinite(mean) else None
