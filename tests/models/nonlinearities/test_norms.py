"""Norms read off their outputs, against PyTorch's and transformers' own, and gradients with denominators held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lit_attr.errors import UserError
from lit_attr.models.nonlinearities.norms import is_norm, read_norm

WIDTH = 7
NORMS = {
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), True, lambda norm: norm.weight),
    "without weight": (lambda: nn.LayerNorm(WIDTH, elementwise_affine=False), True, lambda _: torch.ones(WIDTH)),
    "Llama": (lambda: LlamaRMSNorm(WIDTH), False, lambda norm: norm.weight),
    "Gemma": (lambda: GemmaRMSNorm(WIDTH), False, lambda norm: 1 + norm.weight),
    "Cohere": (lambda: CohereLayerNorm(WIDTH), True, lambda norm: norm.weight),
}


def made(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, bool, Tensor]:
    make, centred, weight_of = NORMS[kind]
    torch.manual_seed(1)
    norm = make().to(dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, mean=0.5)
    return norm, centred, weight_of(norm).detach().float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", NORMS)
def test_reads_weight_epsilon_and_kind(kind: str, dtype: torch.dtype):
    module, centred, weight_H = made(kind, dtype)
    norm = read_norm(module, torch.zeros(1, WIDTH, dtype=dtype), "norm")
    assert norm.centred is centred
    assert norm.eps in (1e-5, 1e-6)
    torch.testing.assert_close(
        norm.weight_H, weight_H, rtol=10 * torch.finfo(dtype).eps, atol=0.02 * (dtype != torch.float32)
    )


@pytest.mark.parametrize("kind", NORMS)
def test_holds_denominators_in_the_backward_pass_only(kind: str):
    module, centred, weight_H = made(kind)
    norm = read_norm(module, torch.zeros(1, WIDTH), "norm")
    x_NH = (torch.randn(4, WIDTH) * 3 + 1).requires_grad_()
    gradient_NH = torch.randn(4, WIDTH)
    output_NH = norm.holding_denominators(module.forward)(x_NH)
    assert torch.equal(output_NH, module(x_NH))
    # The definition of the rule: the denominator is a constant, and the rest is differentiated.
    numerator_NH = x_NH - x_NH.mean(-1, keepdim=True) if centred else x_NH
    denominator_N1 = (numerator_NH.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach()
    (expected_NH,) = torch.autograd.grad(numerator_NH / denominator_N1 * weight_H, x_NH, gradient_NH)
    (found_NH,) = torch.autograd.grad(output_NH, x_NH, gradient_NH)
    torch.testing.assert_close(found_NH, expected_NH, rtol=1e-5, atol=1e-6)


class SoftmaxNorm(nn.Module):
    eps = 1e-5

    def forward(self, x_NH: Tensor) -> Tensor:
        return x_NH.softmax(-1)


def test_rejects_a_module_that_is_only_named_a_norm():
    assert is_norm(SoftmaxNorm()) and is_norm(nn.LayerNorm(3)) and not is_norm(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"^rule: final \(SoftmaxNorm\) is not a LayerNorm or RMSNorm"):
        read_norm(SoftmaxNorm(), torch.zeros(1, WIDTH), "final")


def test_rejects_an_unknown_epsilon():
    norm = nn.LayerNorm(WIDTH)
    norm.forward = lambda x_NH: nn.functional.layer_norm(x_NH, (WIDTH,), eps=0.5)
    with pytest.raises(UserError, match="is not a LayerNorm or RMSNorm"):
        read_norm(norm, torch.zeros(1, WIDTH), "final")


class GatedNorm(LlamaRMSNorm):
    def forward(self, x_NH: Tensor, gate_NH: Tensor | None = None) -> Tensor:
        return super().forward(x_NH if gate_NH is None else x_NH * gate_NH.sigmoid())


def test_rejects_a_norm_with_a_gate():
    module = GatedNorm(WIDTH)
    held = read_norm(module, torch.zeros(1, WIDTH), "norm").holding_denominators(module.forward)
    assert torch.equal(held(torch.ones(1, WIDTH), None), held(x_NH=torch.ones(1, WIDTH)))
    with pytest.raises(UserError, match="^rule: a norm takes more than its vectors"):
        held(torch.ones(1, WIDTH), torch.ones(1, WIDTH))
