"""How far scores can be trusted: what they have in common with the exact effects that they estimate.

Axes: B contrasts, L layers, R roles (in the order of `ROLES`), T tokens, N cells (a layer at a token of a row).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric
from torchmetrics.functional import spearman_corrcoef

from lit_attr.contrasts import ROLES, Contrast, role_mask_BRT

# Of the cells with the largest magnitude, how many are looked for among those of the exact effects.
TOP = 10
# Below this, more than three quarters of what varies in the exact effects is not in the scores.
RELIABLE = 0.5


class Correlation(Metric):
    """Pearson's correlation, from sums that processes add up.

    The states of torchmetrics' own change their shape with the first update; where one process has had none and
    another has, they would wait for each other for ever.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores_N: Tensor, effects_N: Tensor) -> None:
        """Adds pairs of values, float64."""
        products = (scores_N, effects_N, scores_N.square(), effects_N.square(), scores_N * effects_N)
        self.sums += torch.stack([torch.ones_like(scores_N).sum(), *(product.sum() for product in products)])

    def compute(self) -> Tensor:
        """The correlation; NaN where values do not vary."""
        count, scores, effects, score_squares, effect_squares, products = self.sums
        spread = (count * score_squares - scores.square()) * (count * effect_squares - effects.square())
        correlation: Tensor = (count * products - scores * effects) / spread.sqrt()
        return correlation


class TrustReport(nn.Module):
    """Agreement of scores and exact effects, over all cells, in each layer, and at each role.

    Pearson's correlation, the share of cells that agree in sign, and, as means over contrasts, Spearman's
    correlation and the share of the ten largest scores that are among the ten largest effects. Processes share the
    counts by torchmetrics.

    Args:
        layers: Which layers the scores are of.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.contrasts = SumMetric()
        self.pearson = Correlation()
        # A Module's list, so that they move with it; a list of their own for their type.
        self._by_layer = [Correlation() for _ in self.layers]
        self._by_role = [Correlation() for _ in ROLES]
        self._moved = nn.ModuleList([*self._by_layer, *self._by_role])
        self.spearman, self.same_sign, self.top_overlap = MeanMetric(), MeanMetric(), MeanMetric()

    def update(self, contrasts: Sequence[Contrast], scores_BLT: Tensor, effects_BLT: Tensor) -> None:
        """Adds contrasts.

        Args:
            contrasts: Whose they are.
            scores_BLT: logits.
            effects_BLT: logits, what is lost without the write.
        """
        self.contrasts.update(len(contrasts))
        mask_BRT = role_mask_BRT(
            [contrast.roles for contrast in contrasts], [contrast.subject_span for contrast in contrasts]
        )
        scores_BLT, effects_BLT = scores_BLT.double()[..., : mask_BRT.shape[-1]], effects_BLT.double()
        effects_BLT = effects_BLT[..., : mask_BRT.shape[-1]]
        is_token_BT = mask_BRT.any(1)
        for layer, metric in enumerate(self._by_layer):
            metric.update(scores_BLT[:, layer][is_token_BT], effects_BLT[:, layer][is_token_BT])
        for role, metric in enumerate(self._by_role):
            is_role_BLT = mask_BRT[:, role][:, None].expand_as(scores_BLT)
            metric.update(scores_BLT[is_role_BLT], effects_BLT[is_role_BLT])
        is_cell_BLT = is_token_BT[:, None].expand_as(scores_BLT)
        scores_N, effects_N = scores_BLT[is_cell_BLT], effects_BLT[is_cell_BLT]
        self.pearson.update(scores_N, effects_N)
        # At the last layer all but the last token have neither.
        either_N = (scores_N != 0) | (effects_N != 0)
        self.same_sign.update((scores_N.sign() == effects_N.sign())[either_N].double())
        for cells_LT, score_LT, effect_LT in zip(is_cell_BLT, scores_BLT, effects_BLT, strict=True):
            score_N, effect_N = score_LT[cells_LT], effect_LT[cells_LT]
            top = min(TOP, len(score_N))
            largest = [set(values_N.abs().topk(top).indices.tolist()) for values_N in (score_N, effect_N)]
            self.top_overlap.update(len(largest[0] & largest[1]) / top)
            if len(score_N) > 1:
                self.spearman.update(spearman_corrcoef(score_N, effect_N))

    def compute(self) -> dict[str, Any]:
        """The report of all processes in JSON types; None for what there are too few cells for. All must ask."""
        return {
            "contrasts": int(self.contrasts.compute()),
            "replacement": "zero",
            "pearson": _number(self.pearson),
            "spearman": _number(self.spearman),
            "same_sign": _number(self.same_sign),
            f"top_{TOP}_overlap": _number(self.top_overlap),
            "pearson_by_layer": {
                str(layer): _number(metric) for layer, metric in zip(self.layers, self._by_layer, strict=True)
            },
            "pearson_by_role": {role: _number(metric) for role, metric in zip(ROLES, self._by_role, strict=True)},
        }


def _number(metric: Metric) -> float | None:
    with warnings.catch_warnings():
        # Of one value, or of values that are all the same, which have no correlation.
        warnings.simplefilter("ignore")
        value = float(metric.compute())
    return value if math.isfinite(value) else None


def verdict(report: Mapping[str, Any]) -> str:
    """The report in one plain line."""
    poor = {
        layer: pearson
        for layer, pearson in report["pearson_by_layer"].items()
        if pearson is not None and pearson < RELIABLE
    }
    overall = report["pearson"]
    line = f"{report['contrasts']} contrasts compared with their exact effects (zero ablation): "
    line += "r could not be told" if overall is None else f"r = {overall:.2f} over all layers and tokens"
    if poor:
        named = ", ".join(f"{layer} (r = {pearson:.2f})" for layer, pearson in poor.items())
        line += f"; do not rely on the scores of layer{'s' if len(poor) > 1 else ''} {named}"
    elif overall is not None and overall < RELIABLE:
        line += "; do not compare scores across layers"
    return line
