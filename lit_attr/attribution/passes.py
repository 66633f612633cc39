"""Forward passes for the contrastive logit difference.

Axes: B contrasts, T tokens (padded on the right), H width of the component's output, V vocabulary, A tokens of
answers.
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

from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.hooks import calling, recorded, take_last, undisturbed
from lit_attr.models.location import Location, token_embedding
from lit_attr.models.selftest import watched_gradients, without_gradient

# What autograd says of outputs that the logits do not depend on, as far as it knows.
LOST_GRADIENT = ("does not require grad", "appears to not have been used in the graph")


class Answers(NamedTuple):
    """The two answers by the logits after the last token; the fields are those of `AttributionBatch`."""

    logit_true_B: Tensor
    logit_false_B: Tensor
    prob_true_B: Tensor
    prob_false_B: Tensor
    rank_true_B: Tensor


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory has run out, on any device."""
    # A CPU has no error type of its own for this.
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def token_mask_BT(batch: ContrastBatch) -> Tensor:
    """Which positions are not padding. On the CPU, from where it can index tensors on any device."""
    # Not from the tensors of the batch, which may be on a device: to read them would wait for it.
    last_B = torch.tensor([len(contrast.token_ids) - 1 for contrast in batch.contrasts])
    return torch.arange(batch.token_ids_BT.shape[1]) <= last_B[:, None]


def check_inputs(location: Location, batch: ContrastBatch) -> None:
    """Refuses a batch that the model cannot take.

    Raises:
        ArgumentError: A token id has no embedding in the model, or a context is longer than its positions.
    """
    positions, vocabulary = location.limits.positions, location.limits.vocabulary
    largest = max(map(_largest_token_id, batch.contrasts))
    if vocabulary is not None and largest >= vocabulary:
        raise ArgumentError(
            "batch",
            f"token id {largest} has no embedding in this model of {vocabulary} tokens; use the model's own "
            "tokenizer",
        )
    lengths = [len(contrast.token_ids) for contrast in batch.contrasts]
    if positions is not None and max(lengths) > positions:
        longest = batch.contrasts[lengths.index(max(lengths))]
        raise ArgumentError(
            "batch",
            f"the fact {longest.fact.id!r} has {max(lengths)} tokens, and this model has positions for "
            f"{positions}; leave it out or shorten it",
        )


def _largest_token_id(contrast: Contrast) -> int:
    donor_ids = () if contrast.donor is None else contrast.donor.token_ids
    return max(*contrast.token_ids, *donor_ids, contrast.true_token_id, contrast.false_token_id)


def parts_of_one_width(location: Location, batch: ContrastBatch) -> list[tuple[list[int], ContrastBatch]]:
    """The parts of a batch whose rows score together as they do alone, each with the rows of the batch in it.

    Most models treat each row by itself, and the batch is the only part. Where the width of a batch decides rotary
    frequencies, rows of other widths are parts of their own.

    Args:
        location: The modules whose outputs are scored.
        batch: The contrasts.
    """
    lengths = [len(contrast.token_ids) for contrast in batch.contrasts]
    width_class = width_class_of(location)
    classes = [width_class(length) for length in lengths]
    width = batch.token_ids_BT.shape[1]
    if {*classes} == {width_class(width)}:
        return [([*range(len(lengths))], batch)]
    parts = []
    for each in dict.fromkeys(classes):
        rows = [row for row, found in enumerate(classes) if found == each]
        part = batch.select(rows)
        if width_class(width) != each:
            longest = max(lengths[row] for row in rows)
            part = part.narrowed(longest)
        parts.append((rows, part))
    return parts


def width_class_of(location: Location) -> Callable[[int], int]:
    """The class of a width: rows whose lengths are of one class may share a pass."""
    # Where the config says nothing of it, no two widths are known to be alike.
    return int if location.depends_on_width else location.limits.width_class


def last_logits_BV(model: PreTrainedModel, batch: ContrastBatch) -> Tensor:
    """The logits after each row's last token, in float32 at least; call it within `only_last_logits`."""
    logits_BV: Tensor = model(input_ids=batch.token_ids_BT, use_cache=False).logits[:, 0]
    return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))


@torch.inference_mode(False)
@torch.no_grad()
def answer_batch(model: PreTrainedModel, location: Location, batch: ContrastBatch) -> Answers:
    """The model's answers to a batch, from one forward pass.

    Args:
        model: A causal language model.
        location: The modules whose outputs are scored in the same run.
        batch: The contrasts, on the device of the model's embeddings.

    Raises:
        ArgumentError: A token id has no embedding in the model, or a context is longer than its positions.
    """
    check_inputs(location, batch)
    found, rows = [], []
    with undisturbed(model, batch.token_ids_BT.device) as model:
        for places, part in parts_of_one_width(location, batch):
            with only_last_logits(model, part):
                found.append(answers_of(last_logits_BV(model, part), part))
            rows += places
    order_B = torch.tensor(rows).argsort()
    return Answers(*(torch.cat(parts)[order_B.to(parts[0].device)] for parts in zip(*found, strict=True)))


def difference_B(logits: Tensor, batch: ContrastBatch) -> Tensor:
    """logit_true − logit_false, in float32 at least, from the logits [B, V] or [B, 1, V] after the last token."""
    logits_BV = logits.reshape(len(logits), -1).to(torch.promote_types(logits.dtype, torch.float32))
    # By one gather, whose backward pass makes one gradient of the vocabulary's size.
    true_B, false_B = logits_BV.gather(1, _answer_ids_B2(batch, logits.device)).unbind(1)
    return true_B - false_B


def answer_difference_N(logits_N12: Tensor) -> Tensor:
    """logit_true − logit_false, in float32 at least, from two logits a row, see `only_answer_logits`."""
    true_N, false_N = logits_N12[:, 0].to(torch.promote_types(logits_N12.dtype, torch.float32)).unbind(1)
    return true_N - false_N


def logit_spacing_B(logits: Tensor, batch: ContrastBatch) -> Tensor:
    """The spacing of the logits' number format at the larger of the two compared logits, from logits as above."""
    logits_BV = logits.reshape(len(logits), -1)
    largest_B = logits_BV.gather(1, _answer_ids_B2(batch, logits.device)).abs().amax(1)
    precision = max(torch.finfo(logits.dtype).eps, torch.finfo(torch.float32).eps)
    # The spacing is the same between two powers of two.
    return precision * torch.exp2(largest_B.float().log2().floor())


def _answer_ids_B2(batch: ContrastBatch, device: torch.device) -> Tensor:
    return torch.stack([batch.true_token_ids_B, batch.false_token_ids_B], 1).to(device)


def gradients_of(
    model: PreTrainedModel, batch: ContrastBatch, difference: Tensor, activations: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of a sum of logit differences with respect to recorded outputs.

    Args:
        model: The model, to name the module at which gradients end.
        batch: The contrasts.
        difference: The sum.
        activations: The outputs.

    Raises:
        UserError: No gradient arrives at one of them.
    """
    try:
        return torch.autograd.grad(difference, activations)
    except RuntimeError as error:
        if not any(words in str(error) for words in LOST_GRADIENT):
            raise
        embeddings = [token_embedding(model)]
        with recorded(embeddings) as embedded, watched_gradients(model) as passages:
            again = difference_B(last_logits_BV(model, batch), batch).sum()
            if again.requires_grad:
                torch.autograd.grad(again, embedded, allow_unused=True)
        ending = [passage.module for passage in passages if passage.ends]
        if ending:
            raise without_gradient(model, ending[0]) from error
        raise ArgumentError(
            "component", "no gradient of the logits arrives at its output; name another module, or mlp"
        ) from error


@torch.no_grad()
def answers_of(logits_BV: Tensor, batch: ContrastBatch) -> Answers:
    """Logits, probabilities and rank of the two answers, from the logits after the last token."""
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


@contextmanager
def only_last_logits(model: PreTrainedModel, batch: ContrastBatch) -> Iterator[None]:
    """Lets only each row's last hidden state reach the unembedding: logits come out as [B, 1, V].

    Gradients pass through the logits of the answers of its rows alone.

    Args:
        model: A causal language model.
        batch: The contrasts that it runs over.
    """

    def keep_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (take_last(args[0], batch.last_B),)

    unembedding = model.get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(unembedding.register_forward_pre_hook(keep_last).remove)
        if _is_plain(unembedding):
            tokens_A = _answer_tokens_A(batch).to(unembedding.weight.device, non_blocking=True)
            unembed = partial(_Unembed.apply, unembedding.weight, unembedding.bias, tokens_A)
            stack.enter_context(calling(unembedding, unembed))
        yield


@contextmanager
def only_answer_logits(model: PreTrainedModel, last_N: Tensor, ids_N2: Tensor) -> Iterator[None]:
    """Lets only two logits after each row's last token come out of the unembedding, as [N, 1, 2].

    Over many rows, the logits of the whole vocabulary take as long as several blocks.

    Args:
        model: A causal language model.
        last_N: The position of each row's last token.
        ids_N2: The two token ids of each row.
    """

    def keep_last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (take_last(args[0], last_N),)

    def keep_two(_: nn.Module, __: Any, logits_N1V: Tensor) -> Tensor:
        return logits_N1V.gather(2, ids_N2[:, None].to(logits_N1V.device))

    def unembed(hidden_N1H: Tensor) -> Tensor:
        weight_N2H, bias_V = unembedding.weight[ids_N2.to(unembedding.weight.device)], unembedding.bias
        logits_N12: Tensor = hidden_N1H @ weight_N2H.mT
        return logits_N12 if bias_V is None else logits_N12 + bias_V[ids_N2.to(bias_V.device)][:, None]

    unembedding = model.get_output_embeddings()
    with ExitStack() as stack:
        stack.callback(unembedding.register_forward_pre_hook(keep_last).remove)
        if _is_plain(unembedding):
            stack.enter_context(calling(unembedding, unembed))
        else:
            stack.callback(unembedding.register_forward_hook(keep_two).remove)
        yield


def _answer_tokens_A(batch: ContrastBatch) -> Tensor:
    """The tokens with a gradient, in ascending order, on the CPU: what a device has computed need not be read."""
    contrastive = (contrast for contrast in batch.contrasts if contrast.is_contrastive)
    tokens = {token for each in contrastive for token in (each.true_token_id, each.false_token_id)}
    return torch.tensor(sorted(tokens), dtype=torch.int64)


def _is_plain(unembedding: nn.Module) -> bool:
    # Quantised, adapted and offloaded unembeddings keep a forward and backward of their own.
    is_plain = type(unembedding).forward is nn.Linear.forward and type(unembedding.weight) is nn.Parameter
    return is_plain and "forward" not in vars(unembedding)


class _Unembed(torch.autograd.Function):
    """An unembedding whose backward reads only the answer tokens, not the whole vocabulary."""

    @staticmethod
    def forward(
        ctx: Any, weight_VH: Tensor, bias_V: Tensor | None, tokens_A: Tensor, hidden_BTH: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight_VH, tokens_A)
        return linear(hidden_BTH, weight_VH, bias_V)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, Tensor]:
        (gradient_BTV,) = gradients
        weight_VH, tokens_A = ctx.saved_tensors
        return None, None, None, gradient_BTV[..., tokens_A] @ weight_VH[tokens_A]
