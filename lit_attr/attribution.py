"""The attribution: gradient × activation at every chosen layer of a batch, from one forward and one backward.

Pure torch. Axes: B contrasts, L chosen layers, T tokens (padded on the right), H width of the component's output,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from lit_attr.contrasts import Contrast, ContrastBatch
from lit_attr.errors import UserError
from lit_attr.hooks import at_last_tokens, calling, first_tensor, frozen, replace_first, take_last, undisturbed
from lit_attr.locate import Location, max_positions, token_embedding


class AttributionBatch(NamedTuple):
    """The scores of a batch, detached. Padding scores 0. Numbers are float32; float64 where the model is.

    Attributes:
        contrasts: What was attributed, in the order of the rows.
        layers: The layer index of each place on the layer axis.
        component: What the scores are of: `mlp`, `attention`, `block` or a module path.
        scores_sum_BLT: logits. Σ_h a·g: the signed score.
        scores_l2_BLT: logits. The l2 norm over h of a·g.
        logit_true_B: The true answer's logit.
        logit_false_B: The false answer's logit.
        prob_true_B: Softmax over the vocabulary.
        prob_false_B: Likewise.
        rank_true_B: int64, how many tokens are more likely than the true one.
    """

    contrasts: tuple[Contrast, ...]
    layers: tuple[int, ...]
    component: str
    scores_sum_BLT: Tensor
    scores_l2_BLT: Tensor
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
        """Both, one after the other; they have to be of the same layers and as wide."""
        tensors = (torch.cat(pair) for pair in zip(self[3:], other[3:], strict=True))
        return AttributionBatch(self.contrasts + other.contrasts, self.layers, self.component, *tensors)

    def _map(self, function: Callable[[Tensor], Tensor]) -> AttributionBatch:
        return AttributionBatch(self.contrasts, self.layers, self.component, *map(function, self[3:]))


@torch.inference_mode(False)
@torch.enable_grad()
def attribute_batch(
    model: PreTrainedModel, location: Location, batch: ContrastBatch, *, component: str = "mlp"
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

    Raises:
        UserError: A token id has no embedding in the model, or the context is longer than its positions.
    """
    check_inputs(model, batch)
    # Inference tensors, such as a Trainer hands out by default, cannot be saved for a backward.
    batch = batch.clone()
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, batch.token_ids_BT.device))
        stack.enter_context(frozen(model))
        if location.top_at_last_token:
            stack.enter_context(at_last_tokens(location.modules[-1], batch.last_B))
        activations = stack.enter_context(_recorded(location.modules))
        stack.enter_context(only_last_logits(model, batch.last_B))
        logits_BV = model(input_ids=batch.token_ids_BT, use_cache=False).logits[:, 0]
        logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        true_ids_B = batch.true_token_ids_B.to(logits_BV.device)
        false_ids_B = batch.false_token_ids_B.to(logits_BV.device)
        logit_true_B = pick(logits_BV, true_ids_B)
        logit_false_B = pick(logits_BV, false_ids_B)
        # Rows do not meet in the model, so the gradient of the sum holds each row's own gradient.
        gradients = torch.autograd.grad((logit_true_B - logit_false_B).sum(), activations)
    with torch.no_grad():
        scores = [_scores_BT(a, g, batch.token_ids_BT.shape) for a, g in zip(activations, gradients, strict=True)]
        probs_BV = logits_BV.softmax(-1)
        return AttributionBatch(
            contrasts=batch.contrasts,
            layers=location.layers,
            component=component,
            # A model spread over several devices leaves each layer's scores where the layer is.
            scores_sum_BLT=torch.stack([signed_BT.to(logits_BV.device) for signed_BT, _ in scores], 1),
            scores_l2_BLT=torch.stack([norm_BT.to(logits_BV.device) for _, norm_BT in scores], 1),
            logit_true_B=logit_true_B.detach(),
            logit_false_B=logit_false_B.detach(),
            prob_true_B=pick(probs_BV, true_ids_B),
            prob_false_B=pick(probs_BV, false_ids_B),
            rank_true_B=(logits_BV > logit_true_B[:, None]).sum(1),
        )


def pick(values_BV: Tensor, ids_B: Tensor) -> Tensor:
    """Each row's value for one token."""
    return values_BV.gather(1, ids_B[:, None])[:, 0]


def _scores_BT(activation: Tensor, gradient: Tensor, rows_and_tokens: torch.Size) -> tuple[Tensor, Tensor]:
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
def _recorded(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the modules' outputs in the order given; the first to run becomes the leaf of the tape."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def record(place: int, output: Any) -> Any:
        hidden = first_tensor(output)
        outputs[place] = hidden if hidden.requires_grad else hidden.detach().requires_grad_()
        # A copy goes on, since some blocks add the residual to what they get in place.
        return replace_first(output, outputs[place].clone())

    with ExitStack() as stack:
        for place, module in enumerate(modules):
            handle = module.register_forward_hook(lambda _, __, output, place=place: record(place, output))
            stack.callback(handle.remove)
        yield outputs


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
