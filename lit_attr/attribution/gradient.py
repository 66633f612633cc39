"""The attribution: gradient × activation at every chosen layer of a batch, from one forward and one backward.

Pure torch. Axes: B contrasts, L chosen layers, T tokens (padded on the right), H width of the component's output,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from lit_attr.attribution.norm_secant import Reader, change_scores_NL
from lit_attr.attribution.rules import GRADIENT, Rule, RuleName
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast, ContrastBatch
from lit_attr.models.hooks import (
    at_last_tokens,
    calling,
    first_tensor,
    frozen,
    inputs_recorded,
    outputs_changed,
    recorded,
    replace_first,
    take_last,
    undisturbed,
)
from lit_attr.models.location import Location, max_positions, token_embedding


class AttributionBatch(NamedTuple):
    """The scores of a batch, detached. Padding scores 0. Numbers are float32; float64 where the model is.

    Attributes:
        contrasts: What was attributed, in the order of the rows.
        layers: The layer index of each place on the layer axis.
        component: What the scores are of: `mlp`, `attention`, `block` or a module path.
        rule: How they were computed: see `lit_attr.attribution.rules.find_rule`.
        scores_sum_BLT: logits. The signed score: Σ_h a·g, where the rule takes a gradient.
        scores_l2_BLT: logits. The l2 norm over h of a·g; None where the rule's scores are no such product.
        logit_true_B: The true answer's logit.
        logit_false_B: The false answer's logit.
        prob_true_B: Softmax over the vocabulary.
        prob_false_B: Likewise.
        rank_true_B: int64, how many tokens are more likely than the true one.
    """

    contrasts: tuple[Contrast, ...]
    layers: tuple[int, ...]
    component: str
    rule: RuleName
    scores_sum_BLT: Tensor
    scores_l2_BLT: Tensor | None
    logit_true_B: Tensor
    logit_false_B: Tensor
    prob_true_B: Tensor
    prob_false_B: Tensor
    rank_true_B: Tensor

    def to(self, device: torch.device | str) -> AttributionBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, rows: Sequence[int]) -> AttributionBatch:
        """Some of the contrasts, with what belongs to them."""
        contrasts = tuple(self.contrasts[row] for row in rows)
        return self._replace(contrasts=contrasts)._map(lambda tensor: tensor[list(rows)])

    def join(self, other: AttributionBatch) -> AttributionBatch:
        """Both, one after the other; they have to be of the same layers and rule and as wide."""
        pairs = zip(self._asdict().items(), other, strict=True)
        joined: dict[str, Any] = {
            name: torch.cat([value, cast(Tensor, others)])
            for (name, value), others in pairs
            if isinstance(value, Tensor)
        }
        return self._replace(contrasts=self.contrasts + other.contrasts, **joined)

    def _map(self, function: Callable[[Tensor], Tensor]) -> AttributionBatch:
        values = self._asdict().items()
        mapped: dict[str, Any] = {name: function(value) for name, value in values if isinstance(value, Tensor)}
        return self._replace(**mapped)


class Answers(NamedTuple):
    """What the logits after the last token say of the two answers; the fields are those of `AttributionBatch`."""

    logit_true_B: Tensor
    logit_false_B: Tensor
    prob_true_B: Tensor
    prob_false_B: Tensor
    rank_true_B: Tensor


@torch.inference_mode(False)
@torch.enable_grad()
def attribute_batch(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    *,
    component: str = "mlp",
    rule: Rule = GRADIENT,
) -> AttributionBatch:
    """Gradient × activation of the contrastive logit difference, for all chosen layers of a batch.

    `score[l, t] = Σ_h a[l, t, h] · ∂(logit_true − logit_false) / ∂a[l, t, h]`, with both logits read after the
    last token of the context: layer gradient × activation (Shrikumar et al., 2016, arXiv:1605.01713, at a layer
    as in Captum) of the contrastive objective of Yin & Neubig (2022, arXiv:2202.10419).

    The model is in eval mode meanwhile. Its modes, its hooks and its parameters' `requires_grad` are afterwards as
    before, also after an error.

    Args:
        model: A causal language model.
        location: The modules whose outputs `a` are scored.
        batch: The contrasts, on the device of the model's embeddings.
        component: What `location` was found for; passed on into the result.
        rule: How the gradient is taken, from `find_rule`; `exact` is that of `ablate_batch`.

    Raises:
        UserError: A token id has no embedding in the model, or the context is longer than its positions.
    """
    check_inputs(model, batch)
    # Inference tensors, such as a Trainer hands out by default, cannot be saved for a backward.
    batch = batch.clone()
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, batch.token_ids_BT.device))
        stack.enter_context(frozen(model))
        stack.enter_context(rule.held())
        if location.top_at_last_token:
            stack.enter_context(at_last_tokens(location.modules[-1], batch.last_B))
        stack.enter_context(only_last_logits(model, batch.last_B))
        if rule.name == "integrated":
            scores, answers = _along_paths(model, location, batch, rule.steps)
        elif rule.name == "norm-secant":
            scores, answers = _by_secants(model, location, batch, rule.readers)
        else:
            scores, answers = _by_products(model, location, batch)
    signed, norms = zip(*scores, strict=True)
    device = answers.logit_true_B.device
    # A model spread over several devices leaves each layer's scores where the layer is.
    stacked = [
        torch.stack([each_BT.to(device) for each_BT in part], 1) for part in (signed, norms) if part[0] is not None
    ]
    l2_BLT = stacked[1] if len(stacked) > 1 else None
    return AttributionBatch(batch.contrasts, location.layers, component, rule.name, stacked[0], l2_BLT, *answers)


# A layer's signed scores and their norms, which not every rule has.
LayerScores = tuple[Tensor, Tensor | None]


def _by_products(
    model: PreTrainedModel, location: Location, batch: ContrastBatch
) -> tuple[list[LayerScores], Answers]:
    with recorded(location.modules) as activations:
        logits_BV = last_logits_BV(model, batch)
    # Rows do not meet in the model, so the gradient of the sum holds each row's own gradient.
    gradients = torch.autograd.grad(difference_B(logits_BV, batch).sum(), activations)
    shape = batch.token_ids_BT.shape
    scores: list[LayerScores] = [_products_BT(a, g, shape) for a, g in zip(activations, gradients, strict=True)]
    return scores, answers_of(logits_BV, batch)


def _by_secants(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, readers: Sequence[Reader]
) -> tuple[list[LayerScores], Answers]:
    norms = [reader.module for reader in readers]
    with recorded(location.modules) as writes, inputs_recorded(norms) as inputs, recorded(norms) as outputs:
        logits_BV = last_logits_BV(model, batch)
    gradients = torch.autograd.grad(difference_B(logits_BV, batch).sum(), outputs)
    flat = [[each.detach().flatten(0, -2) for each in part] for part in (writes, inputs, gradients)]
    scores_NL = change_scores_NL(readers, *flat).to(torch.promote_types(logits_BV.dtype, torch.float32))
    scores_BTL = scores_NL.reshape(*batch.token_ids_BT.shape, -1)
    return [(scores_BT, None) for scores_BT in scores_BTL.unbind(-1)], answers_of(logits_BV, batch)


def _along_paths(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, steps: int
) -> tuple[list[LayerScores], Answers]:
    with torch.no_grad(), recorded(location.modules) as activations:
        answers = answers_of(last_logits_BV(model, batch), batch)
    scores: list[LayerScores] = []
    for module, activation in zip(location.modules, activations, strict=True):
        mean = torch.zeros_like(activation, dtype=torch.promote_types(activation.dtype, torch.float32))
        for step in range(steps):

            def scale(_: int, output: Any, part: float = (step + 0.5) / steps) -> Any:
                return replace_first(output, first_tensor(output) * part)

            with outputs_changed([module], scale), recorded([module]) as writes:
                difference = difference_B(last_logits_BV(model, batch), batch).sum()
            mean += torch.autograd.grad(difference, writes)[0] / steps
        scores.append(_products_BT(activation, mean, batch.token_ids_BT.shape))
    return scores, answers


def last_logits_BV(model: PreTrainedModel, batch: ContrastBatch) -> Tensor:
    """The logits after each row's last token, in float32 at least; to be called within `only_last_logits`."""
    logits_BV: Tensor = model(input_ids=batch.token_ids_BT, use_cache=False).logits[:, 0]
    return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))


def difference_B(logits: Tensor, batch: ContrastBatch) -> Tensor:
    """logit_true − logit_false, in float32 at least, from the logits [B, V] or [B, 1, V] after the last token."""
    logits_BV = logits.reshape(len(logits), -1).to(torch.promote_types(logits.dtype, torch.float32))
    true_B, false_B = (ids_B.to(logits_BV.device) for ids_B in (batch.true_token_ids_B, batch.false_token_ids_B))
    return pick(logits_BV, true_B) - pick(logits_BV, false_B)


@torch.no_grad()
def answers_of(logits_BV: Tensor, batch: ContrastBatch) -> Answers:
    """What the logits say of the two answers."""
    true_B, false_B = (ids_B.to(logits_BV.device) for ids_B in (batch.true_token_ids_B, batch.false_token_ids_B))
    logit_true_B, probs_BV = pick(logits_BV, true_B), logits_BV.softmax(-1)
    return Answers(
        logit_true_B.detach(),
        pick(logits_BV, false_B).detach(),
        pick(probs_BV, true_B).detach(),
        pick(probs_BV, false_B).detach(),
        (logits_BV > logit_true_B[:, None]).sum(1),
    )


def pick(values_BV: Tensor, ids_B: Tensor) -> Tensor:
    """Each row's value for one token."""
    return values_BV.gather(1, ids_B[:, None])[:, 0]


def _products_BT(activation: Tensor, gradient: Tensor, rows_and_tokens: torch.Size) -> tuple[Tensor, Tensor]:
    # In float32 at least: in half precision the products of small numbers underflow.
    wide = torch.promote_types(activation.dtype, torch.float32)
    product = activation.detach().to(wide) * gradient.to(wide)
    # Some modules take the tokens of all rows in one axis.
    product_BTH = product.reshape(*rows_and_tokens, -1)
    return product_BTH.sum(-1), torch.linalg.vector_norm(product_BTH, dim=-1)


def check_inputs(model: PreTrainedModel, batch: ContrastBatch) -> None:
    """Refuses what the model cannot take.

    Raises:
        UserError: A token id has no embedding in the model, or the context is longer than its positions.
    """
    vocabulary = len(token_embedding(model).weight)
    largest = int(max(batch.token_ids_BT.max(), batch.true_token_ids_B.max(), batch.false_token_ids_B.max()))
    if largest >= vocabulary:
        raise UserError(
            f"data.tokenizer: token id {largest} has no embedding in this model of {vocabulary} tokens; "
            "use the model's own tokenizer"
        )
    positions = max_positions(model)
    lengths = [len(contrast.token_ids) for contrast in batch.contrasts]
    if positions is not None and max(lengths) > positions:
        longest = batch.contrasts[lengths.index(max(lengths))]
        raise UserError(
            f"data.source: the fact {longest.fact.id!r} has {max(lengths)} tokens, and this model has positions "
            f"for {positions}; leave it out or shorten it"
        )


@contextmanager
def only_last_logits(model: PreTrainedModel, last_B: Tensor) -> Iterator[None]:
    """Lets only each row's last hidden state reach the unembedding: logits come out as [B, 1, V]."""

    def keep_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (take_last(args[0], last_B),)

    unembedding = model.get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(unembedding.register_forward_pre_hook(keep_last).remove)
        # Others (quantised, adapted, with weights that come when they are used) have a backward of their own.
        if type(unembedding) is nn.Linear and "forward" not in vars(unembedding):
            unembed = partial(_Unembed.apply, unembedding.weight, unembedding.bias)
            stack.enter_context(calling(unembedding, unembed))
        yield


class _Unembed(torch.autograd.Function):
    """An unembedding whose backward reads only the tokens that have a gradient: two a row, not the vocabulary."""

    @staticmethod
    def forward(ctx: Any, weight_VH: Tensor, bias_V: Tensor | None, hidden_BTH: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VH)
        return linear(hidden_BTH, weight_VH, bias_V)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (gradient_BTV,) = gradients
        (weight_VH,) = ctx.saved_tensors
        tokens = gradient_BTV.flatten(0, -2).any(0).nonzero().flatten()
        return None, None, gradient_BTV[..., tokens] @ weight_VH[tokens]
