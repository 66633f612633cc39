"""Gradient × activation at every chosen layer of a batch, from one forward and one backward pass.

The other rules of the catalogue share its entry point, `attribute_batch`, and its result.

Axes: B contrasts, L chosen layers, T tokens (padded on the right), H width of the component's output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.passes import (
    Answers,
    answers_of,
    check_inputs,
    difference_B,
    gradients_of,
    last_logits_BV,
    only_last_logits,
    parts_of_one_width,
)
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import at_last_tokens, frozen, recorded, undisturbed
from lit_attr.models.location import Location

if TYPE_CHECKING:
    from lit_attr.attribution.neurons import NeuronWatch, TopNeurons


# A layer's signed scores, and their norms where the rule has them.
LayerScores = tuple[Tensor, Tensor | None]


class Rule(ABC):
    """A rule that `find_rule` has prepared for one model."""

    name: ClassVar[RuleName]

    def held(self) -> AbstractContextManager[None]:
        """Changes the model's backward pass to the rule's. The forward pass and the model stay as they are."""
        return nullcontext()

    @abstractmethod
    def scores(
        self,
        model: PreTrainedModel,
        location: Location,
        batch: ContrastBatch,
        replacement_BLTH: Tensor | None = None,
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's scores, [B, T], and the two answers.

        Args:
            model: The model, in eval mode, without parameter gradients, and `held`.
            location: The modules whose outputs are scored.
            batch: The contrasts, on the device of the model's embeddings.
            replacement_BLTH: What would replace each write; zeros where None.
        """


class Gradient(Rule):
    """Gradient × activation. Rules that only change the backward pass inherit from it."""

    name: ClassVar[RuleName] = "gradient"

    def scores(
        self,
        model: PreTrainedModel,
        location: Location,
        batch: ContrastBatch,
        replacement_BLTH: Tensor | None = None,
        neurons: NeuronWatch | None = None,
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's products of activation and gradient, summed over the width, and their norms.

        Args:
            model: The model, in eval mode, without parameter gradients, and `held`.
            location: The modules whose outputs are scored.
            batch: The contrasts, on the device of the model's embeddings.
            replacement_BLTH: What is subtracted from each activation; zeros where None.
            neurons: What looks for neurons in the same pass.
        """
        with last_tokens_only(model, location, batch):
            with (
                recorded(location.modules) as activations,
                nullcontext() if neurons is None else neurons.recorded(),
            ):
                logits_BV = last_logits_BV(model, batch)
            leaves = [] if neurons is None else neurons.leaves
            # Rows do not interact in the model, so the gradient of the sum contains each row's own gradient.
            difference = difference_B(logits_BV, batch).sum()
            gradients = gradients_of(model, batch, difference, [*activations, *leaves])[: len(activations)]
            changes = changes_of(activations, replacement_BLTH)
            shape = batch.token_ids_BT.shape
            pairs = zip(changes, gradients, strict=True)
            scores = [products_BT(change, gradient, shape) for change, gradient in pairs]
            return scores, answers_of(logits_BV, batch)


GRADIENT = Gradient()


def with_neurons(rule: Rule) -> Gradient:
    """The rule, if it scores neurons: it takes one gradient of the model's own forward pass.

    Raises:
        ArgumentError: It does not.
    """
    if not isinstance(rule, Gradient):
        raise ArgumentError(
            "top_neurons",
            f"the rule {rule.name} takes no gradient at hidden units; leave it out or choose gradient, "
            "frozen-norm or linearised",
        )
    return rule


@torch.inference_mode(False)
@torch.enable_grad()
def attribute_batch(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    *,
    rule: Rule = GRADIENT,
    replacement_BLTH: Tensor | None = None,
    top_neurons: TopNeurons | None = None,
) -> AttributionBatch:
    """Scores a batch for all chosen layers, by default with gradient × activation of the logit difference.

    `score[l, t] = Σ_h (a − r)[l, t, h] · ∂(logit_true − logit_false) / ∂a[l, t, h]`, with both logits read after
    the last token of the context: layer gradient × activation (Shrikumar et al., 2016, arXiv:1605.01713, at a
    layer as in Captum) of the contrastive objective of Yin & Neubig (2022, arXiv:2202.10419). With r = 0 it
    estimates zero ablation; with the writes of another prompt it is attribution patching (Nanda, 2023; Syed et
    al., 2023, arXiv:2310.10348).

    Each row scores as it does alone: rows whose widths a model treats differently are passes of their own.

    The model is in eval mode meanwhile. Its modes, hooks and `requires_grad` flags are restored afterwards, also
    after an error.

    Args:
        model: A causal language model.
        location: The modules whose outputs `a` are scored.
        batch: The contrasts, on the device of the model's embeddings.
        rule: How scores are computed, from `find_rule`.
        replacement_BLTH: What would replace each write, r, from `Ablation.replacement_BLTH`; zeros where None.
        top_neurons: Which hidden units to look for in the same pass, from `find_neurons` for this rule.

    Raises:
        ArgumentError: A token id has no embedding in the model, a context is longer than its positions, or the
            rule takes no gradient at hidden units.
    """
    check_inputs(location, batch)
    # A Trainer makes inference tensors by default, and those cannot be saved for a backward pass.
    batch = batch.clone()
    with ExitStack() as stack:
        model = stack.enter_context(undisturbed(model, batch.token_ids_BT.device))
        stack.enter_context(frozen(model))
        stack.enter_context(rule.held())
        parts = parts_of_one_width(location, batch)
        scored = []
        for rows, part in parts:
            replaced = None if replacement_BLTH is None else _of_part(replacement_BLTH, rows, part)
            scored.append(_scored(model, location, part, rule, replaced, top_neurons))
    if len(parts) == 1 and parts[0][1] is batch:
        return scored[0]
    return join_parts(scored, [rows for rows, _ in parts], batch.token_ids_BT.shape[1])


def join_parts(scored: Sequence[AttributionBatch], rows: Sequence[Sequence[int]], tokens: int) -> AttributionBatch:
    """The scores of a whole batch from those of its parts, in the order of its rows.

    Args:
        scored: The scores of each part.
        rows: The rows of the batch that each part has.
        tokens: The width of the batch.
    """
    joined = reduce(AttributionBatch.join, (each.padded(tokens) for each in scored))
    places = [row for part in rows for row in part]
    return joined.select([places.index(row) for row in range(len(places))])


def _scored(
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    rule: Rule,
    replacement_BLTH: Tensor | None,
    top_neurons: TopNeurons | None,
) -> AttributionBatch:
    watch = None if top_neurons is None else top_neurons.watch(batch)
    if watch is None:
        scores, answers = rule.scores(model, location, batch, replacement_BLTH)
    else:
        scores, answers = with_neurons(rule).scores(model, location, batch, replacement_BLTH, watch)
    signed, norms = zip(*scores, strict=True)
    device = answers.logit_true_B.device
    # A model spread over several devices leaves each layer's scores on the layer's device.
    stacked = [
        torch.stack([each_BT.to(device) for each_BT in part], 1) for part in (signed, norms) if part[0] is not None
    ]
    l2_BLT = stacked[1] if len(stacked) > 1 else None
    scored = AttributionBatch(
        batch.contrasts, location.layers, location.components, rule.name, stacked[0], l2_BLT, *answers
    )
    return scored if watch is None else scored._replace(neurons=watch.scores().map(lambda each: each.to(device)))


@contextmanager
def last_tokens_only(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Iterator[None]:
    """Runs the unembedding, and the top MLP where that suffices, at each row's last token only."""
    with ExitStack() as stack:
        if location.top_mlp is not None:
            stack.enter_context(at_last_tokens(location.top_mlp, batch.last_B))
        stack.enter_context(only_last_logits(model, batch))
        yield


def changes_of(writes: Sequence[Tensor], replacement_BLTH: Tensor | None) -> list[Tensor]:
    """What each write differs by from what replaces it, detached and in float32 at least.

    Args:
        writes: Each layer's writes: [B, T, H], or with the tokens of all rows in one axis.
        replacement_BLTH: What replaces them; zeros where None.
    """
    changes = []
    for place, write in enumerate(writes):
        # In half precision the products of small numbers underflow.
        change = write.detach().to(torch.promote_types(write.dtype, torch.float32))
        if replacement_BLTH is not None:
            change = change - replacement_BLTH[:, place].to(change).reshape(change.shape)
        changes.append(change)
    return changes


def _of_part(replacement_BLTH: Tensor, rows: Sequence[int], part: ContrastBatch) -> Tensor:
    return replacement_BLTH[list(rows), :, : part.token_ids_BT.shape[1]]


def products_BT(change: Tensor, gradient: Tensor, rows_and_tokens: torch.Size) -> tuple[Tensor, Tensor]:
    """The product of a change of :func:`changes_of` and a gradient: its sum over the width and its l2 norm."""
    product = change * gradient.to(change.dtype)
    # Some modules have the tokens of all rows in one axis.
    product_BTH = product.reshape(*rows_and_tokens, -1)
    return product_BTH.sum(-1), torch.linalg.vector_norm(product_BTH, dim=-1)
