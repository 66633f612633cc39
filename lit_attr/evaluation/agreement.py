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

from lit_attr.facts.contrasts import ROLES, Contrast, role_mask_BRT

# Of the cells with the largest magnitude, how many are looked for among those of the exact effects: of all of a
# contrast's cells, and of those in one layer or role.
TOP, FEWER_TOP = 10, 3
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
        spreads = [
            # Where values do not vary, rounding is all that is left.
            torch.where(spread > 1e-12 * count * squares, spread, torch.nan)
            for squares, total in ((score_squares, scores), (effect_squares, effects))
            for spread in [count * squares - total.square()]
        ]
        spread = spreads[0] * spreads[1]
        correlation: Tensor = (count * products - scores * effects) / spread.sqrt()
        return correlation


class Agreement(nn.Module):
    """Agreement of scores and exact effects over one kind of cells.

    Pearson's correlation over the cells of all contrasts, the share of cells that agree in sign, and, as means
    over contrasts, Spearman's correlation and the share of the largest scores that are among the largest effects.

    Args:
        top: How many of a contrast's cells count as the largest; one with no more is left out there.
    """

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top
        self.pearson, self.same_sign = Correlation(), MeanMetric()
        self.spearman, self.top_overlap = MeanMetric(), MeanMetric()

    def update(self, scores: Sequence[Tensor], effects: Sequence[Tensor]) -> None:
        """Adds the cells, float64, of some contrasts."""
        scores_N, effects_N = torch.cat([*scores]), torch.cat([*effects])
        self.pearson.update(scores_N, effects_N)
        # At the last layer all but the last token have neither.
        either_N = (scores_N != 0) | (effects_N != 0)
        if either_N.any():
            self.same_sign.update((scores_N.sign() == effects_N.sign())[either_N].double())
        for whole_score_N, whole_effect_N in zip(scores, effects, strict=True):
            either_N = (whole_score_N != 0) | (whole_effect_N != 0)
            score_N, effect_N = whole_score_N[either_N], whole_effect_N[either_N]
            if len(score_N) > self.top:
                largest = [set(values_N.abs().topk(self.top).indices.tolist()) for values_N in (score_N, effect_N)]
                self.top_overlap.update(len(largest[0] & largest[1]) / self.top)
            if len(score_N.unique()) > 1 and len(effect_N.unique()) > 1:
                self.spearman.update(spearman_corrcoef(score_N, effect_N))

    def compute(self) -> dict[str, float | None]:
        """The numbers of all processes; None for what there are too few cells for. All must ask."""
        return {
            "pearson": _number(self.pearson),
            "spearman": _number(self.spearman),
            "same_sign": _number(self.same_sign),
            f"top_{self.top}_overlap": _number(self.top_overlap),
        }


class TrustReport(nn.Module):
    """Agreement of scores and exact effects, over all cells, in each layer, and at each role.

    Processes share the counts by torchmetrics.

    Args:
        layers: Which layers the scores are of.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.contrasts = SumMetric()
        self.over_all = Agreement(TOP)
        # A Module's list, so that they move with it; a list of their own for their type.
        self._by_layer = [Agreement(FEWER_TOP) for _ in self.layers]
        self._by_role = [Agreement(FEWER_TOP) for _ in ROLES]
        self._moved = nn.ModuleList([*self._by_layer, *self._by_role])

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
        values = [values_BLT.double()[..., : mask_BRT.shape[-1]] for values_BLT in (scores_BLT, effects_BLT)]
        is_token_BT = mask_BRT.any(1)
        # Each kind of cells: in which layers, and at which tokens of each contrast.
        everywhere = slice(None)
        kinds = [(self.over_all, everywhere, is_token_BT)]
        kinds += [(metric, slice(at, at + 1), is_token_BT) for at, metric in enumerate(self._by_layer)]
        kinds += [(metric, everywhere, mask_BRT[:, at]) for at, metric in enumerate(self._by_role)]
        for metric, layers, at_BT in kinds:
            metric.update(
                *(
                    [
                        values_LT[layers][:, at_T].flatten()
                        for values_LT, at_T in zip(values_BLT, at_BT, strict=True)
                    ]
                    for values_BLT in values
                )
            )

    def compute(self) -> dict[str, Any]:
        """The report of all processes in JSON types; None for what there are too few cells for. All must ask."""
        with warnings.catch_warnings():
            # Of a process that has compared nothing.
            warnings.simplefilter("ignore")
            contrasts = int(self.contrasts.compute())
        by_layer = {
            str(layer): metric.compute() for layer, metric in zip(self.layers, self._by_layer, strict=True)
        }
        by_role = {role: metric.compute() for role, metric in zip(ROLES, self._by_role, strict=True)}
        return {
            "contrasts": contrasts,
            "replacement": "zero",
            **self.over_all.compute(),
            "by_layer": by_layer,
            "by_role": by_role,
        }


def _number(metric: Metric) -> float | None:
    with warnings.catch_warnings():
        # Of one value, or of values that are all the same, which have no correlation.
        warnings.simplefilter("ignore")
        value = float(metric.compute())
    return value if math.isfinite(value) else None


def verdict(report: Mapping[str, Any]) -> str:
    """The report in one plain line."""
    by_layer = {layer: agreement["pearson"] for layer, agreement in report["by_layer"].items()}
    poor = {layer: pearson for layer, pearson in by_layer.items() if pearson is not None and pearson < RELIABLE}
    overall = report["pearson"]
    line = f"{report['contrasts']} contrasts compared with their exact effects (zero ablation): "
    line += "r could not be told" if overall is None else f"r = {overall:.2f} over all layers and tokens"
    if poor:
        named = ", ".join(f"{layer} (r = {pearson:.2f})" for layer, pearson in poor.items())
        line += f"; do not rely on the scores of layer{'s' if len(poor) > 1 else ''} {named}"
    elif overall is not None and overall < RELIABLE:
        line += "; do not compare scores across layers"
    return line
