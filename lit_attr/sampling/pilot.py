"""The pilot of an adaptive run, and the error model that all processes of the run share.

Axes: L chosen layers, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

from lit_attr.attribution.adaptive import attribute_adaptively, attribute_pilot, depth_of, estimate_batch
from lit_attr.attribution.error_model import FORWARDS_A_GRADIENT, ErrorModel, Estimate, Targets, fit
from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.attribution.scoring import score_batch
from lit_attr.errors import ArgumentError, UserError, one_line, warn_about
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import input_device
from lit_attr.sampling.comparisons import Scorer
from lit_attr.text import counted
from lit_attr.trainers import OwnsPilot, owner_of_run, run_state

# With fewer contrasts no fit can leave out a quarter of them.
FEWEST = 4


def check_targets(
    min_agreement: float | None, by_layer: float | None, pilot: int, max_cost: float | None, *, rule: str
) -> Targets | None:
    """The promise of an adaptive run; None where there is none.

    Args:
        min_agreement: Pearson's correlation with the exact effects over all cells.
        by_layer: In each layer; None for no such promise.
        pilot: How many contrasts the pilot has.
        max_cost: Bound of the expected work in passes of the plain gradient, that of the estimate included.
        rule: The rule of the estimates.

    Raises:
        ArgumentError: A value is out of range, or one belongs to a setting that is not given.
    """
    if min_agreement is None:
        if max_cost is not None:
            raise ArgumentError("max_cost", "it bounds what min_agreement costs; set that as well")
        return None
    for name, value in (("min_agreement", min_agreement), ("min_agreement_by_layer", by_layer)):
        if value is not None and not 0 < value < 1:
            raise ArgumentError(name, f"{value} is not between 0 and 1, such as 0.95")
    if rule == "exact":
        raise ArgumentError("min_agreement", "every score of the rule exact is exact; leave it out")
    if pilot < FEWEST:
        raise ArgumentError("pilot", f"{pilot} is less than {FEWEST}; give {FEWEST} or more")
    # The features of the error model take a pass of the plain gradient, beside that of another rule.
    passes = 1 if rule == "gradient" else 2
    if max_cost is not None and not isfinite(max_cost):
        raise ArgumentError("max_cost", f"{max_cost} is not a bound; leave it out")
    if max_cost is not None and not max_cost > passes:
        raise ArgumentError(
            "max_cost", f"{max_cost} leaves nothing for exact effects: the estimates cost {passes}; give more"
        )
    return Targets(min_agreement, by_layer, None if max_cost is None else max_cost - passes)


def promised(
    min_agreement: float | None, by_layer: float | None, pilot: int, max_cost: float | None
) -> dict[str, Any]:
    """The settings of an adaptive run, which change numbers, in JSON types; None for any other run."""
    settings = {
        "min_agreement": min_agreement,
        "min_agreement_by_layer": by_layer,
        "pilot": pilot,
        "max_cost": max_cost,
    }
    return dict.fromkeys(settings) if min_agreement is None else settings


class Adaptive:
    """Attributes the batches of an adaptive run: the pilot's exactly, and all others by the run's error model.

    Args:
        targets: The promise.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._error_model: ErrorModel | None = None
        # Without a Trainer, nobody else keeps them.
        self._pilot: list[ExactEffects] = []

    def forget(self) -> None:
        """Forgets the pilot and the error model of an earlier run."""
        self._error_model = None
        self._pilot = []

    def attribute_pilot(
        self, scorer: Scorer, batch: ContrastBatch, trainer: pl.Trainer | None
    ) -> AttributionBatch:
        """All exact effects of contrasts of the pilot.

        Args:
            scorer: What scores are computed with.
            batch: The contrasts.
            trainer: The Trainer of the run, one of whose callbacks keeps the effects; None to keep them here.

        Raises:
            ArgumentError: The model's exact effects cannot be computed, or it does not fit the batch.
        """
        model, location, scoring = scorer
        try:
            scored = attribute_pilot(model, location, batch, scoring)
        except UserError:
            raise
        except Exception as error:  # of any kind, the model's own among them: without a pilot there is no promise
            reason = f"this model's exact effects cannot be computed ({one_line(error)}); leave it out"
            raise ArgumentError("min_agreement", reason) from error
        if trainer is None:
            self._pilot += [effects for effects in scored.exact if effects.refused is None]
        return scored

    def attribute(self, scorer: Scorer, batch: ContrastBatch, trainer: pl.Trainer | None) -> AttributionBatch:
        """The scores of a batch without the pilot's contrasts, exact where the error model asks for it.

        The first call waits for the pilot.

        Args:
            scorer: What scores are computed with.
            batch: The contrasts, with their places in the random order of the run.
            trainer: The Trainer of the run.

        Raises:
            ArgumentError: The batch has no places, no callback keeps the error model, or the pilot is too small.
        """
        model, location, scoring = scorer
        state = run_state(trainer)
        pilot = {contrast.key for contrast in state.pilot} if state is not None else set()
        rows = [row for row, contrast in enumerate(batch.contrasts) if contrast.key not in pilot]
        if batch.places is not None and not any(batch.contrasts[row].is_contrastive for row in rows):
            # The pilot may have been all contrasts of two tokens. What one token does to itself is known.
            scores = score_batch(model, location, batch, scoring).select(rows)
            return scores._replace(is_exact_BLT=torch.zeros_like(scores.scores_sum_BLT, dtype=torch.bool))
        if self._error_model is None:
            if batch.places is None:
                raise ArgumentError("min_agreement", "its pilot needs a CounterfactDataModule; use that")
            self._error_model = self._settle(scorer, trainer)
        return attribute_adaptively(model, location, batch, self._error_model, scoring, rows=rows)

    def _settle(self, scorer: Scorer, trainer: pl.Trainer | None) -> ErrorModel:
        """The error model that the run keeps, or one fitted to the pilot once all its effects are there."""
        if trainer is None:
            pilot = [(each.contrast, each.effects_LT.double().numpy()) for each in self._pilot]
            fitted, _ = self._fit(scorer, pilot)
            _warn_of_bound(fitted, self._targets)
            return fitted
        owner: object = owner_of_run(trainer)
        if not isinstance(owner, OwnsPilot):
            raise ArgumentError("min_agreement", "it needs an AttributionWriter among trainer.callbacks; add one")
        kept = owner.read_error_model(trainer)
        if kept is None:
            fitted, contrasts = self._fit(scorer, owner.pilot_effects(trainer))
            kept = owner.keep_error_model(trainer, {"contrasts": contrasts, **fitted.to_json()})
            if trainer.is_global_zero:
                _warn_of_bound(fitted, self._targets)
        return ErrorModel.from_json(kept)

    def _fit(
        self, scorer: Scorer, pilot: Sequence[tuple[Contrast, NDArray[np.float64]]]
    ) -> tuple[ErrorModel, int]:
        """Fits an error model to a pilot, and says to how many of its contrasts."""
        estimated = [(_estimate(scorer, contrast), effects_LT) for contrast, effects_LT in pilot]
        known = [(estimate, effects_LT) for estimate, effects_LT in estimated if estimate.is_finite]
        if len(known) < FEWEST:
            raise ArgumentError(
                "min_agreement",
                f"the pilot has {counted(len(known), 'contrast')} with finite scores and exact effects, fewer "
                f"than {FEWEST}; give more facts, or the dtype float32",
            )
        depth = depth_of(scorer.model, scorer.location)
        return fit(scorer.location.layers, depth, known, self._targets), len(known)


def _estimate(scorer: Scorer, contrast: Contrast) -> Estimate:
    model, location, scoring = scorer
    batch = collate_contrasts([contrast]).to(input_device(model))
    replacement_BLTH = scoring.ablation.replacement_BLTH(model, location, batch)
    return estimate_batch(model, location, batch, scoring, replacement_BLTH).estimates[0]


def _warn_of_bound(fitted: ErrorModel, targets: Targets) -> None:
    """Says what is expected where `max_cost` is reached before the promise."""
    by_layer = targets.by_layer
    missed = [
        layer
        for layer, found in zip(fitted.layers, fitted.expected_by_layer, strict=True)
        if by_layer is not None and found < by_layer
    ]
    if targets.max_cost is None or (fitted.expected >= targets.overall and not missed):
        return
    words = f"within it, r = {fitted.expected:.2f} is expected instead of {targets.overall}"
    if missed:
        words += f", and less than {by_layer} in layers {', '.join(map(str, missed))}"
    cost = fitted.cost / FORWARDS_A_GRADIENT
    warn_about("max_cost", f"{words} (exact effects cost {cost:.1f} gradients a contrast)")
