"""Scores that take the norms as they are: the exact change of each norm's output when a write is left out.

A gradient follows a norm's tangent. Where a write is much of what a norm standardises, as in the first layers, the
norm's output without it is far from there, and the secant tells more.

Axes: B rows, T tokens, N tokens of all rows, L chosen layers, K readers, H width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.errors import UserError
from lit_attr.models.hooks import first_given, first_tensor, inputs_recorded, recorded, replace_first
from lit_attr.models.location import Location
from lit_attr.models.norms import Norm
from lit_attr.models.selftest import noise, short_input_BT

# Numbers in float64 that are at work at a time: few enough for a processor's cache.
CHUNK = 2**20
# How far the readers' part may fall short of the whole gradient, relative to the largest score.
FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1


class Reader(NamedTuple):
    """A norm that reads the residual stream.

    Attributes:
        module: The norm.
        norm: What it does.
        factors_L: How much of each layer's write is in what it reads: 1, or a model's constant, or 0 where the
            write comes later.
    """

    module: nn.Module
    norm: Norm
    factors_L: Tensor


@torch.inference_mode(False)
@torch.enable_grad()
def find_readers(
    model: PreTrainedModel, location: Location, norms: Mapping[nn.Module, Norm]
) -> tuple[Reader, ...]:
    """The norms that read the residual stream, found by letting nothing but the stream carry a gradient.

    They must explain the whole gradient: with the norms' tangents in place of their secants, the scores must be
    gradient × activation.

    Args:
        model: A causal language model, in eval mode and without gradients for its parameters.
        location: The modules whose outputs are scored.
        norms: The model's norms.

    Raises:
        UserError: A norm reads the stream more than once, or something else reads the stream.
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
    raise UserError(
        f"model.rule: the norms of {type(model).__name__} are not all that reads the residual stream, so their "
        "secants do not make up a score; take another rule than norm-secant"
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
        # Norms of queries and keys may run as often as they like.
        if any(read.requires_grad for read in reads):
            if len(reads) > 1:
                raise UserError("model.rule: a norm runs twice in a forward pass; take another than norm-secant")
            (read,) = reads
            probe = noise(read)
            found = torch.autograd.grad((read * probe).sum(), leaves, allow_unused=True, retain_graph=True)
            factors = [_factor(gradient, probe) for gradient in found]
            if any(factors):
                readers.append(Reader(module, norms[module], torch.tensor(factors, dtype=torch.float64)))
    return tuple(readers)


def _factor(gradient: Tensor | None, probe: Tensor) -> float:
    """How many times the probe a gradient is; 0 where it is something else."""
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
    """What the outputs of all readers lose without a write, weighed by their gradients.

    `score[l, n] = Σ_k g[k, n] · (norm_k(x[k, n]) − norm_k(x[k, n] − a[l, n]))`, with a write `a`, what a reader
    reads `x`, and the gradient `g` at the reader's output: multipliers of finite differences, as in DeepLIFT
    (Shrikumar et al., 2017, arXiv:1704.02685), for the norms, with the reference each write needs, and gradients
    for all else.

    Args:
        readers: The norms.
        writes_LNH: What each layer writes.
        inputs_KNH: What each reader reads.
        gradients_KNH: The gradients at their outputs.
        tangent: Take the norms' tangents instead, which gives gradient × activation.

    Returns:
        float64, in units of what the gradients are of; zeros where there is no reader.
    """
    device = gradients_KNH[0].device
    norms = [reader.norm for reader in readers]
    factors_KL = torch.stack([reader.factors_L for reader in readers]).to(device)
    weights_KH = torch.stack([norm.weight_H.to(device) for norm in norms]).double()
    eps_K = torch.tensor([norm.eps for norm in norms], device=device, dtype=torch.float64)
    tokens, width = writes_LNH[0].shape
    # How much of a product of sums is to be taken off a sum of products: an RMSNorm does not centre.
    centred_K = torch.tensor([norm.centred / width for norm in norms], device=device, dtype=torch.float64)
    step = max(1, CHUNK // (width * (len(writes_LNH) + 2 * len(readers))))
    scores = []
    for start in range(0, tokens, step):
        a_NLH, x_NKH, g_NKH = (
            torch.stack([each_NH[start : start + step].to(device) for each_NH in part], 1).double()
            for part in (writes_LNH, inputs_KNH, gradients_KNH)
        )
        u_NKH = g_NKH.mul_(weights_KH)
        # All that the norms' changes need, from inner products and sums alone.
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
