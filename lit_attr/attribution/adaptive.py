"""Adaptive attribution: estimates, and exact effects in the cells where the error model predicts that they matter.

Axes: B contrasts, L chosen layers, T tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.comparison import NOT_FINITE
from lit_attr.attribution.error_model import ErrorModel, Estimate
from lit_attr.attribution.exact.effects import resolved_effects
from lit_attr.attribution.exact.prefix_reuse import CleanRun, blocks_of, recorded_run
from lit_attr.attribution.gradient import GRADIENT, attribute_batch, join_parts
from lit_attr.attribution.neurons import TopNeurons
from lit_attr.attribution.passes import is_out_of_memory, parts_of_one_width, token_mask_BT
from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.attribution.scoring import Scoring
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, take_last, undisturbed
from lit_attr.models.location import Location
from lit_attr.models.transfer import copied


class Estimated(NamedTuple):
    """The scores of a batch, and what the error model needs to know of each contrast.

    Attributes:
        scores: The rule's scores.
        estimates: Of each contrast, without padding.
        clean: What exact effects can share with the pass; None where the model does not support that, or the batch
            took several passes.
    """

    scores: AttributionBatch
    estimates: tuple[Estimate, ...]
    clean: CleanRun | None


def depth_of(model: PreTrainedModel, location: Location) -> int:
    """The number of layers of the language model, at least up to the last chosen one."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return max(count or 0, max(location.layers) + 1)


def estimate_batch(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    scoring: Scoring = Scoring(),
    replacement_BLTH: Tensor | None = None,
) -> Estimated:
    """Scores a batch and records how large each write is beside the residual stream.

    A rule other than the plain gradient takes a pass of it as well: the error model's features are always those of
    the plain gradient.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored.
        batch: The contrasts, on the device of the model's embeddings.
        scoring: How scores are computed.
        replacement_BLTH: The writes of its ablation; zeros where None.
    """
    is_gradient = scoring.rule.name == GRADIENT.name
    neurons = scoring.top_neurons if is_gradient else None
    gradient, share_BLT, clean = _gradient_pass(model, location, batch, replacement_BLTH, neurons)
    scores = gradient if is_gradient else scoring.scores(model, location, batch, replacement_BLTH)
    assert gradient.scores_l2_BLT is not None
    features = copied([scores.scores_sum_BLT, gradient.scores_sum_BLT, gradient.scores_l2_BLT], "cpu")
    arrays = [tensor_BLT.double().numpy() for tensor_BLT in (*features, share_BLT)]
    estimates = []
    for row, contrast in enumerate(batch.contrasts):
        scores_LT, gradient_LT, norms_LT, share_LT = (
            array_BLT[row, :, : len(contrast.tokens)] for array_BLT in arrays
        )
        estimates.append(Estimate(scores_LT, gradient_LT, norms_LT, share_LT, contrast.roles))
    return Estimated(scores, tuple(estimates), clean)


def attribute_adaptively(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    error_model: ErrorModel,
    scoring: Scoring = Scoring(),
    *,
    rows: Sequence[int] | None = None,
) -> AttributionBatch:
    """Scores a batch, with exact effects in place of the estimates that are predicted to be wrong.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored and ablated.
        batch: The contrasts, on the device of the model's embeddings.
        error_model: Fitted to a pilot for the same model, location and scoring.
        scoring: How the estimates are computed.
        rows: The rows to return. The last digits of estimates depend on the batch, so that the others are
            estimated with them. Default: all.

    Returns:
        The scores, with `is_exact_BLT`. A cell whose exact effect is not finite keeps its estimate.
    """
    replacement_BLTH = scoring.ablation.replacement_BLTH(model, location, batch)
    scores, estimates, clean = estimate_batch(model, location, batch, scoring, replacement_BLTH)
    if rows is not None:
        replacement_BLTH = None if replacement_BLTH is None else replacement_BLTH[list(rows)]
        scores, batch, estimates = scores.select(rows), batch.select(rows), tuple(estimates[row] for row in rows)
        clean = None if clean is None else clean.select(rows, batch.token_ids_BT.shape[1])
    is_exact_BLT = torch.zeros(scores.scores_sum_BLT.shape, dtype=torch.bool)
    is_finite_B = scores.is_finite_B().tolist()
    for row, (contrast, estimate) in enumerate(zip(batch.contrasts, estimates, strict=True)):
        # All effects of a token on itself are 0. An estimate that is not finite is refused later, as in a run
        # without an error model.
        if contrast.is_contrastive and is_finite_B[row]:
            wanted_LT = error_model.wants_LT(estimate)
            is_exact_BLT[row, :, : wanted_LT.shape[1]] = torch.from_numpy(wanted_LT)
    effects_BLT = resolved_effects(
        model, location, batch, replacement_BLTH, wanted_BLT=is_exact_BLT, clean=clean
    ).effects_BLT
    return _with_effects(scores, effects_BLT, is_exact_BLT & effects_BLT.isfinite().cpu())


def attribute_pilot(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    scoring: Scoring = Scoring(),
) -> AttributionBatch:
    """Computes all exact effects of a batch, to which an error model can be fitted.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored and ablated.
        batch: The contrasts, on the device of the model's embeddings, with their places in the run's random order.
        scoring: How the scores of the run are computed.

    Returns:
        The exact effects as scores, and in `exact`. A contrast whose effects or scores are not finite keeps its
        estimates, and has the reason in `exact`.
    """
    replacement_BLTH = scoring.ablation.replacement_BLTH(model, location, batch)
    scores = scoring.scores(model, location, batch, replacement_BLTH)
    effects_BLT, resolution_B = resolved_effects(model, location, batch, replacement_BLTH)
    is_resolved_B = effects_BLT.isfinite().flatten(1).all(1).cpu()
    is_finite_B = is_resolved_B & scores.is_finite_B().cpu()
    exact = []
    for row, contrast in enumerate(batch.contrasts):
        refused = None
        if not is_finite_B[row]:
            refused = f"its {'scores or logits' if is_resolved_B[row] else 'exact effects'} {NOT_FINITE}"
        effects_LT = effects_BLT[row, :, : len(contrast.tokens)].to("cpu", torch.float32)
        exact.append(
            ExactEffects(
                contrast,
                None if batch.places is None else batch.places[row],
                location.layers,
                location.components,
                scoring.ablation.name,
                effects_LT if refused is None else torch.zeros_like(effects_LT),
                resolution_B[row].item() if refused is None else 0.0,
                None,
                refused,
                is_pilot=True,
            )
        )
    is_exact_BLT = token_mask_BT(batch)[:, None] & is_finite_B[:, None, None]
    is_exact_BLT = is_exact_BLT.expand(-1, len(location.layers), -1).clone()
    return _with_effects(scores, effects_BLT, is_exact_BLT)._replace(exact=tuple(exact))


def _with_effects(scores: AttributionBatch, effects_BLT: Tensor, is_exact_BLT: Tensor) -> AttributionBatch:
    estimates_BLT = scores.scores_sum_BLT
    is_exact_BLT = is_exact_BLT.to(estimates_BLT.device)
    mixed_BLT = torch.where(is_exact_BLT, effects_BLT.to(estimates_BLT), estimates_BLT)
    return scores._replace(scores_sum_BLT=mixed_BLT, is_exact_BLT=is_exact_BLT)


def _gradient_pass(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement_BLTH: Tensor | None,
    neurons: TopNeurons | None,
) -> tuple[AttributionBatch, Tensor, CleanRun | None]:
    """Gradient × activation; ‖change of the write‖ / ‖output of the block‖, on the CPU; and the run to share."""
    shape, device = batch.token_ids_BT.shape, batch.token_ids_BT.device
    share_BLT = torch.zeros(shape[0], len(location.layers), shape[1])
    scored, clean = [], None
    with undisturbed(model, device) as model:
        parts = parts_of_one_width(location, batch)
        for rows, part in parts:
            width = part.token_ids_BT.shape[1]
            replaced = None if replacement_BLTH is None else replacement_BLTH[rows, :, :width]
            attribute = partial(
                attribute_batch, model, location, part, replacement_BLTH=replaced, top_neurons=neurons
            )
            with _norms_of(model, location, part, replaced) as (changes, streams):
                scores, clean = _recorded_pass(model, location, part, attribute)
                scored.append(scores)
            pairs = zip(changes, streams, strict=True)
            shares = [(change_BT / stream_BT.to(change_BT.device)).to(device) for change_BT, stream_BT in pairs]
            share_BLT[rows, :, :width] = torch.stack(shares, 1).cpu()
    if len(parts) > 1:
        clean = None
    return join_parts(scored, [rows for rows, _ in parts], shape[1]), share_BLT, clean


def _recorded_pass(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, attribute: Callable[[], AttributionBatch]
) -> tuple[AttributionBatch, CleanRun | None]:
    """What `attribute` returns, and the run to share; None where the model does not support that."""
    try:
        with recorded_run(model, location, batch) as finished:
            scores = attribute()
    except Exception as error:  # of any kind, since the cache reaches the model's own code
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        return attribute(), None
    try:
        return scores, finished()
    except ValueError:
        return scores, None


@contextmanager
def _norms_of(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor | None
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """The norms of writes' changes and of block outputs at each token of the pass that is run within."""
    blocks = blocks_of(model, location)
    norms = [[torch.empty(0)] * len(blocks) for _ in range(2)]
    rows, tokens = batch.token_ids_BT.shape

    def norms_BT(output: Any, replaced_BTH: Tensor | None) -> Tensor:
        # Some modules have the tokens of all rows in one axis.
        hidden_BTH = first_tensor(output).detach().float().reshape(rows, -1, first_tensor(output).shape[-1])
        # The top MLP runs at the last tokens only.
        is_last_only = hidden_BTH.shape[1] == 1 < tokens
        if replaced_BTH is not None:
            if is_last_only:
                replaced_BTH = take_last(replaced_BTH, batch.last_B)
            hidden_BTH = hidden_BTH - replaced_BTH.to(hidden_BTH)
        found_BT: Tensor = torch.linalg.vector_norm(hidden_BTH, dim=-1)
        if is_last_only:
            at_last_B1 = batch.last_B.to(found_BT.device)[:, None]
            found_BT = found_BT.new_zeros(rows, tokens).scatter(1, at_last_B1, found_BT)
        return found_BT

    def keep_change(place: int, output: Any) -> None:
        norms[0][place] = norms_BT(output, None if replacement_BLTH is None else replacement_BLTH[:, place])

    def keep_stream(place: int, output: Any) -> None:
        norms[1][place] = norms_BT(output, None)

    with outputs_changed(location.modules, keep_change), outputs_changed(blocks, keep_stream):
        yield norms[0], norms[1]
