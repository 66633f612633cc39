"""The comparison of some of a run's scores with their exact effects, while the run goes on.

Axes: B contrasts, L layers, T tokens, N cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from lit_attr.attribution.faithfulness import FaithfulnessReport, random_scores_BLT
from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.evaluation.agreement import TrustReport
from lit_attr.facts.contrasts import collate_contrasts
from lit_attr.models.loading import warn_once

# As many cells of a process's share as a picture can still show.
MOST_POINTS = 20_000


class Points(NamedTuple):
    """Cells for a scatter plot.

    Attributes:
        scores_N: logits.
        effects_N: logits, what is lost without the write.
        layers_N: The layer of each.
    """

    scores_N: np.ndarray
    effects_N: np.ndarray
    layers_N: np.ndarray


class Verification(nn.Module):
    """What scores and exact effects of some contrasts have in common.

    Args:
        layers: Which layers the scores are of.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.trust = TrustReport(layers)
        self.faithfulness = FaithfulnessReport()
        self.points: list[Points] = []

    def compare(self, module: Any, batch: AttributionBatch) -> None:
        """Adds contrasts.

        Args:
            module: Gives `exact_effects_BLT`, and perhaps `faithfulness_curves`, as `AttributionModule` does.
            batch: The contrasts and their scores.
        """
        effects_BLT = module.exact_effects_BLT(collate_contrasts(batch.contrasts))
        finite = effects_BLT.flatten(1).isfinite().all(1).nonzero().flatten().tolist()
        if len(finite) < len(batch.contrasts):
            warn_once("writer.verify: some exact effects are not finite; model.dtype float32 may mend it")
        if not finite:
            return
        batch, effects_BLT = batch.select(finite), effects_BLT[finite]
        contrasts, scores_BLT = batch.contrasts, batch.scores_sum_BLT
        self.trust.update(contrasts, scores_BLT, effects_BLT)
        if hasattr(module, "faithfulness_curves"):
            rankings = (scores_BLT, effects_BLT, random_scores_BLT(contrasts, len(self.layers)))
            try:
                self.faithfulness.update(module.faithfulness_curves(collate_contrasts(contrasts), rankings))
            except Exception as error:  # whatever: the agreement is there, and the run goes on without the curves
                reason = " ".join(str(error).split())[:200]
                warn_once(f"writer.verify: there are no curves of faithfulness ({reason})")
        for row, contrast in enumerate(contrasts):
            scores_LT, effects_LT = (
                values_BLT[row, :, : len(contrast.tokens)].double().numpy()
                for values_BLT in (scores_BLT, effects_BLT)
            )
            layers_LT = np.broadcast_to(np.array(self.layers)[:, None], scores_LT.shape)
            if sum(len(points.scores_N) for points in self.points) < MOST_POINTS:
                self.points.append(Points(scores_LT.ravel(), effects_LT.ravel(), layers_LT.ravel()))

    def compute(self) -> dict[str, Any] | None:
        """The report of all processes in JSON types, where there is any; all must ask."""
        report, faithfulness = self.trust.compute(), self.faithfulness.compute()
        if not report["contrasts"]:
            return None
        return {**report, "faithfulness": faithfulness} if faithfulness["contrasts"] else report
