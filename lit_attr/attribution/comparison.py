"""The comparison of one contrast's scores with its exact effects.

Axes: B = 1 contrast, L chosen layers, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.exact.effects import resolved_effects
from lit_attr.attribution.faithfulness import Curves, faithfulness_curves, random_scores_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import ExactEffects as ExactEffects
from lit_attr.attribution.results import WindowEffects
from lit_attr.attribution.scoring import Scoring
from lit_attr.errors import SharedModelError, one_line, warn_once
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location, input_device

NOT_FINITE = "are not finite; the dtype float32 may fix it"


def compare_exactly(
    model: PreTrainedModel,
    location: Location,
    contrast: Contrast,
    scoring: Scoring = Scoring(),
    *,
    place: int | None = None,
) -> ExactEffects:
    """Computes a contrast's exact effects, and how faithfully its scores rank its cells.

    The contrast goes through the model alone, so that the result does not depend on batches or processes.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored and ablated.
        contrast: The contrast.
        scoring: How the scores that are compared are computed.
        place: The contrast's place in the random order of the run; passed on into the result.

    Raises:
        ArgumentError: A token id has no embedding in the model, or the context is longer than its positions.
    """
    batch = collate_contrasts([contrast]).to(input_device(model))
    rule, ablation, _, window = scoring
    replacement_BLTH = ablation.replacement_BLTH(model, location, batch)
    scored = attribute_batch(model, location, batch, rule=rule, replacement_BLTH=replacement_BLTH)
    scores_BLT = scored.scores_sum_BLT
    effects_BLT, resolution_B = resolved_effects(model, location, batch, replacement_BLTH)
    effects_LT = effects_BLT[0].to("cpu", torch.float32)
    refused, curves = None, None
    if not effects_LT.isfinite().all():
        refused = f"its exact effects {NOT_FINITE}"
    elif not scored.is_finite_B().all():
        refused = f"its scores or logits {NOT_FINITE}"
    else:
        curves = _curves(model, location, batch, (scores_BLT, effects_BLT), replacement_BLTH)
    if refused is not None:
        effects_LT = torch.zeros_like(effects_LT)
    windows = None
    if refused is None and window is not None:
        found_BLT = resolved_effects(model, location, batch, replacement_BLTH, window=window).effects_BLT
        windows = WindowEffects(window, found_BLT[0].to("cpu", torch.float32))
        if not windows.effects_LT.isfinite().all():
            windows = None
    resolution = 0.0 if refused is not None else resolution_B.item()
    return ExactEffects(
        contrast,
        place,
        location.layers,
        location.components,
        ablation.name,
        effects_LT,
        resolution,
        curves,
        refused,
        windows=windows,
    )


def _curves(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    scores_and_effects: tuple[Tensor, Tensor],
    replacement_BLTH: Tensor | None,
) -> Curves | None:
    rankings = (*scores_and_effects, random_scores_BLT(batch.contrasts, len(location.layers)))
    try:
        return faithfulness_curves(model, location, batch, rankings, replacement_BLTH)
    except SharedModelError:
        raise
    except Exception as error:  # the exact effects are of use without the curves, so any failure is survived
        warn_once(f"there are no faithfulness curves ({one_line(error)})")
        return None
