"""Exact effects: the fall of the logit difference when one component's write at one token is replaced.

Gradient × activation is their first-order estimate. The rule `exact` takes them as scores.

Axes: B contrasts, L chosen layers, T tokens (padded on the right), H width of the component's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import LayerScores, Rule
from lit_attr.attribution.passes import (
    Answers,
    answers_of,
    check_inputs,
    difference_B,
    last_logits_BV,
    logit_spacing_B,
    only_last_logits,
    parts_of_one_width,
    width_class_of,
)
from lit_attr.attribution.prefix_reuse import run_clean, with_writes
from lit_attr.errors import ArgumentError, warn_once
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_tensor, outputs_changed, undisturbed
from lit_attr.models.location import Location

# An effect is more than rounding noise from three standard deviations on; one difference of two computations of an
# effect estimates one.
NOISE = 3


class ResolvedEffects(NamedTuple):
    """Exact effects and how far they are resolved.

    Attributes:
        effects_BLT: float32, in logits; 0 where there is padding.
        resolution_B: float32, in logits: effects of smaller magnitude are rounding noise. It is three times the
            difference between two computations of one effect, and at least the spacing of the number format at the
            larger of the two logits.
    """

    effects_BLT: Tensor
    resolution_B: Tensor


class Exact(Rule):
    """Exact effects of zero ablation in the place of scores."""

    name: ClassVar[RuleName] = "exact"

    @torch.no_grad()
    def scores(
        self, model: PreTrainedModel, location: Location, batch: ContrastBatch
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's exact effects."""
        effects_BLT = exact_effects_BLT(model, location, batch)
        with only_last_logits(model, batch.last_B):
            answers = answers_of(last_logits_BV(model, batch), batch)
        return [(effects_BT, None) for effects_BT in effects_BLT.unbind(1)], answers


def exact_effects_BLT(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement: Tensor | None = None,
    *,
    max_tokens: int = 8192,
) -> Tensor:
    """The effects of :func:`resolved_effects` alone: float32 in logits, axes contrast × layer × token."""
    return resolved_effects(model, location, batch, replacement, max_tokens=max_tokens).effects_BLT


@torch.inference_mode(False)
@torch.no_grad()
def resolved_effects(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    replacement: Tensor | None = None,
    *,
    max_tokens: int = 8192,
) -> ResolvedEffects:
    """The fall of the logit difference when one layer's write at one token is replaced, for every such cell.

    `effect[l, t] = diff − diff with a[l, t, :] replaced`, where `a` is the component's write, `diff` is
    logit_true − logit_false after the last token, and all of the model above and after the cell responds to the
    change. This is zero, mean or resample ablation, or (with a donor from another prompt) activation patching: the
    causal tracing of Meng et al. (2022, arXiv:2202.05262) for one state.

    Tokens before t and layers below l are reused from one run without any change. All layers of a token are then
    computed in one pass over the tokens from t on, in which each layer adds its rows. That costs about a quarter
    of a forward pass for each cell. One cell of each row is compared with a whole forward pass; where it differs,
    the model does not support the reuse, and every cell takes a whole forward pass.

    Args:
        model: A causal language model.
        location: The modules whose outputs `a` are replaced.
        batch: The contrasts, on the device of the model's embeddings.
        replacement: Zeros where None; a vector for each layer, [L, H], such as the mean write; or a donor's write
            for each cell, [B, L, T, H].
        max_tokens: Bounds memory: rows × tokens that go through a layer together. The layers of one contrast are
            never separated.

    Returns:
        The effects, with the layers as `location.layers`, on the device of the batch.

    Raises:
        ArgumentError: A token id has no embedding in the model, a context is longer than its positions, or the
            replacement has another shape.
    """
    check_inputs(model, batch)
    layers = len(location.layers)
    effects_BLT = torch.zeros(len(batch.contrasts), layers, batch.token_ids_BT.shape[1])
    resolution_B = torch.zeros(len(batch.contrasts))
    replacement_BLTH = _as_cells(replacement, effects_BLT.shape)
    # With the longest first, the rows that reach a token are always the first ones.
    order = batch.last_B.argsort(descending=True, stable=True).tolist()
    with undisturbed(model, batch.token_ids_BT.device) as model:
        width_class = width_class_of(model, location)
        while order:
            width = int(batch.last_B[order[0]]) + 1
            count = max(1, max_tokens // (layers * width))
            alike = [row for row in order[:count] if width_class(int(batch.last_B[row]) + 1) == width_class(width)]
            rows, order = alike, order[len(alike) :]
            part = batch.select(rows)
            part = part._replace(token_ids_BT=part.token_ids_BT[:, :width])
            effects = _resolved_effects(model, location, part, replacement_BLTH[rows, :, :width])
            effects_BLT[rows, :, :width] = effects.effects_BLT.to(effects_BLT)
            resolution_B[rows] = effects.resolution_B.to(resolution_B)
    device = batch.token_ids_BT.device
    return ResolvedEffects(effects_BLT.where(_is_token_BT(batch)[:, None], 0).to(device), resolution_B.to(device))


@torch.inference_mode(False)
@torch.no_grad()
def mean_writes_LH(model: PreTrainedModel, location: Location, batches: Iterable[ContrastBatch]) -> Tensor:
    """The mean write of each layer over all tokens of many contrasts, for mean ablation.

    Args:
        model: A causal language model.
        location: The modules whose outputs are averaged.
        batches: The contrasts. Padding is left out, and all tokens have the same weight.

    Returns:
        float32, axes layer (as `location.layers`) × width of the output.

    Raises:
        ArgumentError: There is no contrast, a token id has no embedding in the model, or a context is longer than
            its positions.
    """
    total_LH, tokens = torch.zeros(()), 0
    for batch in batches:
        check_inputs(model, batch)
        for _, part in parts_of_one_width(model, location, batch):
            # In float64: the sum is over all tokens of a data set.
            writes_LNH = [write_NH.cpu().double() for write_NH in _writes_NH(model, location, part)]
            total_LH = total_LH + torch.stack([write_NH.sum(0) for write_NH in writes_LNH])
            tokens += len(writes_LNH[0])
    if not tokens:
        raise ArgumentError("batches", "there is no contrast to take the mean write of; give one or more")
    return (total_LH / tokens).float()


def _writes_NH(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> list[Tensor]:
    """Each layer's writes at the N tokens of a batch, without padding."""
    is_token_BT = _is_token_BT(batch)
    writes: dict[int, Tensor] = {}

    def keep(place: int, output: Any) -> None:
        writes[place] = first_tensor(output).reshape(*is_token_BT.shape, -1)[is_token_BT]

    with (
        undisturbed(model, batch.token_ids_BT.device) as model,
        outputs_changed(location.modules, keep),
        only_last_logits(model, batch.last_B),
    ):
        model(input_ids=batch.token_ids_BT, use_cache=False)
    return [writes[place] for place in range(len(location.modules))]


def _resolved_effects(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor
) -> ResolvedEffects:
    """The effects by reuse, checked at the middle token of the lowest layer; else by whole forward passes."""
    tokens = range(batch.token_ids_BT.shape[1])
    middle = len(tokens) // 2
    try:
        clean = run_clean(model, location, batch, replacement_BLTH)
        effects_BL = clean.effects_BL(middle)
        plain_B = clean.diff_B - _plain_diff_B(model, location.modules[0], batch, replacement_BLTH[:, 0], middle)
        noise_B = (effects_BL[:, 0] - plain_B).abs()
        if not noise_B.max() <= clean.rounding:
            raise ValueError("the effects differ from those of a whole forward pass")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an error of the model itself is raised again by a whole forward pass
        if "allocate memory" in str(error):  # a CPU has no error type of its own for this
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        warn_once(
            f"exact effects of {type(model).__name__} take a whole forward pass for every layer and token, "
            f"several times as long, since the runs of its layers cannot be shared between cells ({reason})"
        )
        return _plain_effects(model, location, batch, replacement_BLTH)
    effects = [effects_BL if token == middle else clean.effects_BL(token) for token in tokens]
    return ResolvedEffects(torch.stack(effects, 2), (NOISE * noise_B).maximum(clean.spacing_B))


def _plain_effects(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, replacement_BLTH: Tensor
) -> ResolvedEffects:
    """The effects by a whole forward pass for each cell."""
    with only_last_logits(model, batch.last_B):
        logits = model(input_ids=batch.token_ids_BT, use_cache=False).logits
    clean_B, spacing_B = difference_B(logits, batch), logit_spacing_B(logits, batch)
    effects_LTB = [
        torch.stack(
            [
                clean_B - _plain_diff_B(model, module, batch, replacement_BLTH[:, place], token)
                for token in range(batch.token_ids_BT.shape[1])
            ]
        )
        for place, module in enumerate(location.modules)
    ]
    return ResolvedEffects(torch.stack(effects_LTB).permute(2, 0, 1), spacing_B)


def _plain_diff_B(
    model: PreTrainedModel, module: nn.Module, batch: ContrastBatch, replacement_BTH: Tensor, token: int
) -> Tensor:
    """The logit difference of a whole forward pass with one write replaced."""
    is_replaced_T = torch.arange(batch.token_ids_BT.shape[1]) == token
    with (
        outputs_changed([module], lambda _, output: with_writes(output, is_replaced_T, replacement_BTH)),
        only_last_logits(model, batch.last_B),
    ):
        return difference_B(model(input_ids=batch.token_ids_BT, use_cache=False).logits, batch)


def _as_cells(replacement: Tensor | None, cells: torch.Size) -> Tensor:
    """A replacement for each cell, [B, L, T, H], without a copy."""
    rows, layers, tokens = cells
    if replacement is None:
        return torch.zeros(()).expand(*cells, 1)
    if replacement.dim() == 2 and len(replacement) == layers:
        return replacement[None, :, None].expand(rows, -1, tokens, -1)
    if replacement.dim() == 4 and replacement.shape[:3] == cells:
        return replacement
    raise ArgumentError(
        "replacement",
        f"its shape {list(replacement.shape)} is neither {layers} layers × width nor {rows} contrasts × {layers} "
        f"layers × {tokens} tokens × width",
    )


def _is_token_BT(batch: ContrastBatch) -> Tensor:
    """Which positions are not padding. On the CPU, from where it can index tensors on any device."""
    return torch.arange(batch.token_ids_BT.shape[1]) <= batch.last_B.cpu()[:, None]
