"""The rule `norm-secant`: the exact change of each norm's output without a write, and gradients for all else.

A gradient follows a norm's tangent. Where a write is a large part of the norm's input, as in the first layers, the
output without the write is far from that tangent, and the secant is the better estimate.

Axes: B rows, T tokens, N tokens of all rows, L chosen layers, K readers, H width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.gradient import LayerScores, Rule, changes_of, last_tokens_only
from lit_attr.attribution.passes import Answers, answers_of, difference_B, gradients_of, last_logits_BV
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import ContrastBatch
from lit_attr.models.hooks import first_given, first_tensor, inputs_recorded, recorded, replace_first
from lit_attr.models.location import Location
from lit_attr.models.memory import budget
from lit_attr.models.nonlinearities.norms import Norm
from lit_attr.models.selftest import noise, short_input_BT

# How many float64 numbers one step works on: few enough for a processor's cache. A device has a budget instead.
CHUNK = 2**20
FLOAT64_BYTES = 8
# How far the scores by the readers alone may deviate from gradient × activation, relative to the largest score.
FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1


class Reader(NamedTuple):
    """A norm that reads the residual stream.

    Attributes:
        module: The norm's module.
        norm: Its weight, epsilon and kind.
        factors_L: The factor of each layer's write in the norm's input: 1 or a constant of the model, or 0 where
            the write comes later.
    """

    module: nn.Module
    norm: Norm
    factors_L: Tensor


@dataclass(frozen=True, eq=False)
class NormSecant(Rule):
    """Gradients at the norms' outputs × the change of these outputs when the write is replaced.

    Attributes:
        readers: The norms that read the residual stream.
    """

    name: ClassVar[RuleName] = "norm-secant"
    readers: tuple[Reader, ...]

    def scores(
        self,
        model: PreTrainedModel,
        location: Location,
        batch: ContrastBatch,
        replacement_BLTH: Tensor | None = None,
    ) -> tuple[Sequence[LayerScores], Answers]:
        """Each layer's scores; they are not products over the width, so they have no norms."""
        norms = [reader.module for reader in self.readers]
        with last_tokens_only(model, location, batch):
            with (
                recorded(location.modules) as writes,
                inputs_recorded(norms) as inputs,
                recorded(norms) as outputs,
            ):
                logits_BV = last_logits_BV(model, batch)
            gradients = gradients_of(model, batch, difference_B(logits_BV, batch).sum(), outputs)
            changes = changes_of(writes, replacement_BLTH)
            flat = [[each.detach().flatten(0, -2) for each in part] for part in (changes, inputs, gradients)]
            scores_NL = change_scores_NL(self.readers, *flat).to(
                torch.promote_types(logits_BV.dtype, torch.float32)
            )
            scores_BTL = scores_NL.reshape(*batch.token_ids_BT.shape, -1)
            return [(scores_BT, None) for scores_BT in scores_BTL.unbind(-1)], answers_of(logits_BV, batch)


@torch.inference_mode(False)
@torch.enable_grad()
def find_readers(
    model: PreTrainedModel, location: Location, norms: Mapping[nn.Module, Norm]
) -> tuple[Reader, ...]:
    """Finds the norms that read the residual stream, by a run in which only the stream carries a gradient.

    They must account for the whole gradient: with the norms' tangents in place of their secants, the scores must
    equal gradient × activation.

    Args:
        model: A causal language model, in eval mode and without gradients for its parameters.
        location: The modules whose outputs are scored.
        norms: The model's norms.

    Raises:
        ArgumentError: A norm reads the stream more than once, or something else reads the stream.
    """
    readers = _direct_readers(model, location.modules, norms)
    with ExitStack() as stack:
        writes = stack.enter_context(recorded(location.modules))
        inputs = stack.enter_context(inputs_recorded([reader.module for reader in readers]))
        outputs = stack.enter_context(recorded([reader.module for reader in readers]))
        logits_BV = model(input_ids=short_input_BT(model), use_cache=False).logits[:, -1]
        gradients = torch.autograd.grad((logits_BV * noise(logits_BV)).sum(), [*writes, *outputs])
    width = writes[0].shape[-1]
    of_writes_LNH, of_outputs_KNH = (
        [gradient.reshape(-1, width) for gradient in part]
        for part in (gradients[: len(writes)], gradients[len(writes) :])
    )
    writes_LNH = [write.detach().reshape(-1, width) for write in writes]
    if readers:
        inputs_KNH = [read.reshape(-1, width) for read in inputs]
        found_NL = change_scores_NL(readers, writes_LNH, inputs_KNH, of_outputs_KNH, tangent=True)
        products = (
            (write.double() * gradient.double()).sum(-1).to(found_NL.device)
            for write, gradient in zip(writes_LNH, of_writes_LNH, strict=True)
        )
        wanted_NL = torch.stack(list(products), 1)
        is_float32 = torch.promote_types(writes[0].dtype, torch.float32) == writes[0].dtype
        tolerance = FLOAT32_TOLERANCE if is_float32 else HALF_TOLERANCE
        if (found_NL - wanted_NL).abs().max() <= tolerance * wanted_NL.abs().max():
            return readers
    raise ArgumentError(
        "rule",
        f"not only the norms of {type(model).__name__} read the residual stream, so their secants do not add up "
        "to a score; choose another rule than norm-secant",
    )


def _direct_readers(
    model: PreTrainedModel, writers: Sequence[nn.Module], norms: Mapping[nn.Module, Norm]
) -> tuple[Reader, ...]:
    writes: dict[nn.Module, Tensor] = {}
    inputs: dict[nn.Module, list[Tensor]] = {}

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if module in norms:
            inputs.setdefault(module, []).append(first_given(args, kwargs))
        hidden = first_tensor(output).detach()
        if module in writers:
            writes[module] = hidden.requires_grad_()
        return replace_first(output, hidden.clone())

    with ExitStack() as hooks:
        for module in {*norms, *writers}:
            hooks.callback(module.register_forward_hook(cut, with_kwargs=True).remove)
        model(input_ids=short_input_BT(model), use_cache=False)
    leaves = [writes[module] for module in writers]
    readers = []
    for module, reads in inputs.items():
        # Only readers of the stream must run once; norms of queries and keys need not.
        if any(read.requires_grad for read in reads):
            if len(reads) > 1:
                raise ArgumentError(
                    "rule", "a norm runs twice in a forward pass; choose another rule than norm-secant"
                )
            (read,) = reads
            probe = noise(read)
            found = torch.autograd.grad((read * probe).sum(), leaves, allow_unused=True, retain_graph=True)
            factors = [_factor(gradient, probe) for gradient in found]
            if any(factors):
                readers.append(Reader(module, norms[module], torch.tensor(factors, dtype=torch.float64)))
    return tuple(readers)


def _factor(gradient: Tensor | None, probe: Tensor) -> float:
    """The factor between a gradient and the probe; 0 where the gradient is not a multiple of it."""
    if gradient is None or gradient.numel() != probe.numel():
        return 0.0
    gradient, probe = gradient.reshape(-1).double(), probe.reshape(-1).double().to(gradient.device)
    factor = (gradient @ probe / (probe @ probe)).item()
    return factor if (gradient - factor * probe).abs().max() < 0.05 * abs(factor) * probe.abs().max() else 0.0


@torch.no_grad()
def change_scores_NL(
    readers: Sequence[Reader],
    writes_LNH: Sequence[Tensor],
    inputs_KNH: Sequence[Tensor],
    gradients_KNH: Sequence[Tensor],
    *,
    tangent: bool = False,
) -> Tensor:
    """The change of all readers' outputs without a write, weighted by their gradients.

    `score[l, n] = Σ_k g[k, n] · (norm_k(x[k, n]) − norm_k(x[k, n] − a[l, n]))`, with a write `a`, a reader's input
    `x`, and the gradient `g` at the reader's output. The norms have multipliers of finite differences, as in
    DeepLIFT (Shrikumar et al., 2017, arXiv:1704.02685), with a reference of its own for each write; all else has
    gradients.

    Args:
        readers: The norms.
        writes_LNH: Each layer's write.
        inputs_KNH: Each reader's input.
        gradients_KNH: The gradients at the readers' outputs.
        tangent: Whether to take the norms' tangents instead, which gives gradient × activation.

    Returns:
        float64, in the unit of the differentiated quantity; zeros where there is no reader.
    """
    device = gradients_KNH[0].device
    norms = [reader.norm for reader in readers]
    factors_KL = torch.stack([reader.factors_L for reader in readers]).to(device, non_blocking=True)
    weights_KH = torch.stack([norm.weight_H.to(device) for norm in norms]).double()
    eps_K = _sent([norm.eps for norm in norms], device)
    tokens, width = writes_LNH[0].shape
    # The factor of the product of sums that centring subtracts from a sum of products; 0 for an RMSNorm.
    centred_K = _sent([norm.centred / width for norm in norms], device)
    bound = budget(device)
    numbers = CHUNK if bound is None else bound // FLOAT64_BYTES
    step = max(1, numbers // (width * (len(writes_LNH) + 2 * len(readers))))
    scores = []
    for start in range(0, tokens, step):
        a_NLH, x_NKH, g_NKH = (
            torch.stack([each_NH[start : start + step].to(device) for each_NH in part], 1).double()
            for part in (writes_LNH, inputs_KNH, gradients_KNH)
        )
        u_NKH = g_NKH.mul_(weights_KH)
        # The norms' changes need only inner products and sums.
        sum_a_NL, sum_x_NK, sum_u_NK = (each.sum(-1) for each in (a_NLH, x_NKH, u_NKH))
        aa_NL, xx_NK, xu_NK = (
            torch.linalg.vecdot(p, q) for p, q in ((a_NLH, a_NLH), (x_NKH, x_NKH), (x_NKH, u_NKH))
        )
        xx_NK, xu_NK = xx_NK - centred_K * sum_x_NK.square(), xu_NK - centred_K * sum_x_NK * sum_u_NK
        xa_NKL, ua_NKL = (
            factors_KL * (each @ a_NLH.mT - (centred_K * sums_NK)[..., None] * sum_a_NL[:, None])
            for each, sums_NK in ((x_NKH, sum_x_NK), (u_NKH, sum_u_NK))
        )
        aa_NKL = factors_KL.square() * (aa_NL[:, None] - centred_K[:, None] * sum_a_NL.square()[:, None])
        scale_NK = torch.rsqrt(xx_NK.clamp(min=0) / width + eps_K)
        if tangent:
            slope_NK = scale_NK**3 * xu_NK / width
            changes_NKL = ua_NKL * scale_NK[..., None] - xa_NKL * slope_NK[..., None]
        else:
            without_NKL = (xx_NK[..., None] - 2 * xa_NKL + aa_NKL).clamp(min=0) / width + eps_K[:, None]
            changes_NKL = (xu_NK * scale_NK)[..., None] - (xu_NK[..., None] - ua_NKL) * without_NKL.rsqrt()
        scores.append(changes_NKL.sum(1))
    return torch.cat(scores)


def _sent(numbers: Sequence[float], device: torch.device) -> Tensor:
    """Numbers in float64 on a device, which is not waited for."""
    return torch.tensor(numbers, dtype=torch.float64).to(device, non_blocking=True)
