"""Gradient × activation at every chosen layer of a batch, from one forward and one backward pass.

The other rules of the catalogue share its entry point, `attribute_batch`, and its result.

Axes: B contrasts, L chosen layers, T tokens (padded on the right), H width of the component's output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import AblationName, RuleName
from lit_attr.attribution.faithfulness import Curves
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
from lit_attr.attribution.transfer import copied
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.hooks import at_last_tokens, frozen, recorded, undisturbed
from lit_attr.models.location import Location

if TYPE_CHECKING:
    from lit_attr.attribution.neurons import NeuronScores, NeuronWatch, TopNeurons


class WindowEffects(NamedTuple):
    """Exact effects of the writes of several layers, replaced together.

    Attributes:
        size: How many layers of one component a window has.
        effects_LT: float32 on the CPU, in logits, at the place of each window's lowest layer; 0 where a window
            would end above the highest.
    """

    size: int
    effects_LT: Tensor


class ExactEffects(NamedTuple):
    """The exact effects of one contrast, and the faithfulness of its scores; see `compare_exactly`.

    Attributes:
        contrast: The contrast.
        place: Its place in the random order of the run; None where the loader knows no such order.
        layers: The layer index of each place on the layer axis.
        components: The component at each place: `mlp`, `attention`, `block` or a module path.
        ablation: By what the write is replaced: `zero`, `mean` or `resample`.
        effects_LT: float32 on the CPU, in logits: the fall of the logit difference when the write is replaced.
            Zeros where `refused`.
        resolution: In logits: effects of smaller magnitude are rounding noise, see `ResolvedEffects`.
        curves: The faithfulness curves of this one contrast, with the rankings in the order of `RANKINGS`; None
            where they could not be computed.
        refused: Why there are no effects; None where there are.
        is_pilot: Whether the error model of an adaptive run is fitted to the contrast.
        windows: The effects of windows of layers; None where they are not asked for.
    """

    contrast: Contrast
    place: int | None
    layers: tuple[int, ...]
    components: tuple[str, ...]
    ablation: AblationName
    effects_LT: Tensor
    resolution: float
    curves: Curves | None
    refused: str | None
    is_pilot: bool = False
    windows: WindowEffects | None = None


class AttributionBatch(NamedTuple):
    """The scores of a batch, detached. Padding scores 0. Numbers are float32; float64 where the model is.

    Attributes:
        contrasts: The attributed contrasts, in the order of the rows.
        layers: The layer index of each place on the layer axis.
        components: The component at each place: `mlp`, `attention`, `block` or a module path.
        rule: The rule that computed the scores, see `lit_attr.attribution.catalogue`.
        scores_sum_BLT: logits. The signed score: Σ_h (a − r)·g, where the rule takes a gradient.
        scores_l2_BLT: logits. The l2 norm over h of (a − r)·g; None where the rule's scores are not such products.
        logit_true_B: The true answer's logit.
        logit_false_B: The false answer's logit.
        prob_true_B: Softmax over the vocabulary.
        prob_false_B: Likewise.
        rank_true_B: int64, how many tokens are more likely than the true one.
        exact: Exact effects of contrasts in the run's sample; empty where none are in the batch.
        is_exact_BLT: bool, the cells whose signed score is the exact effect; None where all are the rule's.
        neurons: The hidden units with the largest scores; None where they are not looked for.
    """

    contrasts: tuple[Contrast, ...]
    layers: tuple[int, ...]
    components: tuple[str, ...]
    rule: RuleName
    scores_sum_BLT: Tensor
    scores_l2_BLT: Tensor | None
    logit_true_B: Tensor
    logit_false_B: Tensor
    prob_true_B: Tensor
    prob_false_B: Tensor
    rank_true_B: Tensor
    exact: tuple[ExactEffects, ...] = ()
    is_exact_BLT: Tensor | None = None
    neurons: NeuronScores | None = None

    @classmethod
    def empty(cls, location: Location, rule: RuleName) -> AttributionBatch:
        """A batch without contrasts, on the CPU, for exact effects that come without scores.

        Args:
            location: The modules whose outputs are scored.
            rule: The rule of the run.
        """
        scores_BLT = torch.zeros(0, len(location.layers), 0)
        numbers_B, ranks_B = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
        answers = Answers(numbers_B, numbers_B, numbers_B, numbers_B, ranks_B)
        return cls((), location.layers, location.components, rule, scores_BLT, None, *answers)

    def is_finite_B(self) -> Tensor:
        """Which contrasts have no number that is infinite or NaN: bool."""
        numbers = [*(value for value in self if isinstance(value, Tensor)), *(self.neurons or ())]
        return torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in numbers]).all(0)

    def to(self, device: torch.device | str) -> AttributionBatch:
        """The same batch on another device, by one copy. Exact effects stay on the CPU."""
        tensors = [each for each in self if isinstance(each, Tensor)] + [*(self.neurons or ())]
        arrived = iter(copied(tensors, device))
        return self._map(lambda _: next(arrived))

    def select(self, rows: Sequence[int]) -> AttributionBatch:
        """Some of the contrasts with their scores, and all exact effects."""
        contrasts = tuple(self.contrasts[row] for row in rows)
        return self._replace(contrasts=contrasts)._map(lambda tensor: tensor[list(rows)])

    def padded(self, tokens: int) -> AttributionBatch:
        """The same scores over more tokens, those of padding."""
        missing = tokens - self.scores_sum_BLT.shape[2]
        l2_BLT, is_exact_BLT = self.scores_l2_BLT, self.is_exact_BLT
        return self._replace(
            scores_sum_BLT=pad(self.scores_sum_BLT, (0, missing)),
            scores_l2_BLT=None if l2_BLT is None else pad(l2_BLT, (0, missing)),
            is_exact_BLT=None if is_exact_BLT is None else pad(is_exact_BLT, (0, missing)),
        )

    def join(self, other: AttributionBatch) -> AttributionBatch:
        """This batch followed by another one of the same layers, rule and width."""
        pairs = zip(self._asdict().items(), other, strict=True)
        joined: dict[str, Any] = {
            name: torch.cat([value, cast(Tensor, others)])
            for (name, value), others in pairs
            if isinstance(value, Tensor)
        }
        neurons = None if self.neurons is None else self.neurons.join(cast("NeuronScores", other.neurons))
        return self._replace(
            contrasts=self.contrasts + other.contrasts, exact=self.exact + other.exact, neurons=neurons, **joined
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> AttributionBatch:
        values = self._asdict().items()
        mapped: dict[str, Any] = {name: function(value) for name, value in values if isinstance(value, Tensor)}
        neurons = None if self.neurons is None else self.neurons.map(function)
        return self._replace(neurons=neurons, **mapped)


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
