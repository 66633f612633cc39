"""LayerNorms and RMSNorms of a model, identified by their outputs.

Axes: N vectors, H their width; axes before the width are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_attr.errors import ArgumentError

# The names that implementations give the number added to the variance.
EPSILONS = ("eps", "variance_epsilon", "epsilon")
# In units of the number format's precision.
ROUNDING = 16


class Norm(NamedTuple):
    """A LayerNorm (Ba et al., 2016, arXiv:1607.06450) or an RMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467).

    Its output is (x − mean) / √(variance + eps) · weight + bias. An RMSNorm does not subtract the mean, and its
    variance is the mean square.

    Attributes:
        weight_H: In float32 at least.
        eps: The number added to the variance.
        centred: Whether the mean is subtracted.
    """

    weight_H: Tensor
    eps: float
    centred: bool

    def centre(self, vectors_H: Tensor) -> Tensor:
        """The vectors without their mean, where this norm subtracts it."""
        return vectors_H - vectors_H.mean(-1, keepdim=True) if self.centred else vectors_H

    def scale(self, square_sum: Tensor) -> Tensor:
        """1 / √(variance + eps), from the sums of squares of centred vectors."""
        return torch.rsqrt(square_sum / len(self.weight_H) + self.eps)

    def holding_denominators(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The norm's own `forward` with a backward pass in which the denominators are constants."""

        def run(*args: Tensor | None, **kwargs: Tensor | None) -> Tensor:
            given = [value for value in (*args, *kwargs.values()) if value is not None]
            if len(given) != 1:
                raise ArgumentError("rule", "a norm takes more than its vectors; choose gradient or integrated")
            (vectors_H,) = given
            held: Tensor = _Held.apply(vectors_H, self, forward)  # type: ignore[no-untyped-call]
            return held

        return run


class _Held(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors_H: Tensor, norm: Norm, forward: Callable[..., Tensor]) -> Tensor:
        wide_H = norm.centre(vectors_H.to(norm.weight_H.dtype))
        ctx.save_for_backward(norm.scale(wide_H.square().sum(-1, keepdim=True)))
        ctx.norm = norm
        return forward(vectors_H)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_H,) = gradients
        (scale,) = ctx.saved_tensors
        weight_H = ctx.norm.weight_H.to(scale.device)
        return (ctx.norm.centre(gradient_H * weight_H) * scale).to(gradient_H.dtype), None, None


@torch.no_grad()
def read_norm(module: nn.Module, like_H: Tensor, name: str) -> Norm:
    """Identifies a norm by its outputs for test vectors.

    Args:
        module: The norm.
        like_H: Vectors of the width, number format and device of its input.
        name: Its path, for the error.

    Raises:
        ArgumentError: It computes something else than a LayerNorm or RMSNorm.
    """
    eps = next((value for value in (getattr(module, key, None) for key in EPSILONS) if value is not None), None)
    wide = torch.promote_types(like_H.dtype, torch.float32)
    # RMSNorms compute in float32 also in a float64 model.
    precision = max(torch.finfo(like_H.dtype).eps, torch.finfo(torch.float32).eps)
    # The first vector, of mean zero and without numbers near zero, determines the weight. The second, of another
    # mean and size, checks it.
    generator = torch.Generator().manual_seed(607_06450)
    sizes_H = (torch.rand(-(-like_H.shape[-1] // 2), generator=generator, device="cpu") + 0.5).repeat_interleave(2)
    first_H = (sizes_H * torch.tensor([1.0, -1.0], device="cpu").repeat(len(sizes_H) // 2))[: like_H.shape[-1]]
    second_H = 3 * torch.randn(first_H.shape, generator=generator, device="cpu") - 3
    probes_NH = torch.stack([first_H, second_H]).to(like_H)
    refusal = ArgumentError(
        "rule",
        f"{name} ({type(module).__name__}) is not a LayerNorm or RMSNorm, so its denominator is unknown; choose "
        "gradient or integrated",
    )
    try:
        outputs_NH, mirrored_NH = module(probes_NH).to(wide), module(-probes_NH).to(wide)
    except Exception as error:  # a module with other inputs may raise anything
        raise refusal from error
    for centred in (False, True):
        bare = Norm(outputs_NH[0], float(eps or 0), centred)
        centred_NH = bare.centre(probes_NH.to(wide))
        standard_NH = centred_NH * bare.scale(centred_NH.square().sum(-1, keepdim=True))
        weight_H, bias_H = (outputs_NH - mirrored_NH)[0] / 2 / standard_NH[0], (outputs_NH + mirrored_NH)[0] / 2
        difference = (standard_NH[1] * weight_H + bias_H - outputs_NH[1]).abs().max()
        largest = ROUNDING * precision * outputs_NH.abs().max()
        if eps is not None and difference <= largest:
            return Norm(weight_H, float(eps), centred)
    raise refusal


def is_norm(module: nn.Module) -> bool:
    """Whether a module's class is called a norm, and it has no submodules."""
    return "norm" in type(module).__name__.lower() and not [*module.children()]
