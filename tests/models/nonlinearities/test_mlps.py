"""Activation functions and gates in the backward pass, against MLPs with the rule written into their forward."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from torch import nn
from torch.nn.functional import gelu, silu
from transformers import PreTrainedModel

from lit_attr.errors import UserError
from lit_attr.models.hooks import evaluating
from lit_attr.models.loading import DEMO_MODEL, load_model
from lit_attr.models.location import named_mlps
from lit_attr.models.nonlinearities.mlps import find_nonlinearities


def first_mlp(model: PreTrainedModel) -> nn.Module:
    return named_mlps(model)[0][1]


def test_activations_of_plain_mlps_are_constant_factors():
    model = tiny_model("gpt2", torch.float64)
    mlp = first_mlp(model)
    nonlinearities = find_nonlinearities(model, named_mlps(model))
    assert nonlinearities.gated == ()
    x_BTH = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    inner = mlp.c_fc(x_BTH)
    factor = (gelu(inner, approximate="tanh") / inner).detach()
    expected = torch.autograd.grad(mlp.c_proj(inner * factor).square().sum(), x_BTH)
    plain = mlp(x_BTH)
    with nonlinearities.linearised():
        output = mlp(x_BTH)
        found = torch.autograd.grad(output.square().sum(), x_BTH)
    assert torch.equal(output, plain)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_gate_and_projection_share_the_gradient_equally(model_type: str):
    model = tiny_model(model_type, torch.float64)
    mlp = first_mlp(model)
    nonlinearities = find_nonlinearities(model, named_mlps(model))
    assert set(nonlinearities.gated) == {module for _, module in named_mlps(model)}
    x_BTH = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    gate, up = (
        (mlp.gate_proj(x_BTH), mlp.up_proj(x_BTH))
        if model_type == "llama"
        else mlp.gate_up_proj(x_BTH).chunk(2, -1)
    )
    held = gate * (silu(gate) / gate).detach()
    product = 0.5 * held * up.detach() + 0.5 * held.detach() * up
    expected = torch.autograd.grad(mlp.down_proj(product).sum(), x_BTH)
    plain = mlp(x_BTH)
    with nonlinearities.linearised():
        output = mlp(x_BTH)
        found = torch.autograd.grad(output.sum(), x_BTH)
    assert torch.equal(output, plain)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_factor_at_zero_is_its_limit():
    model = tiny_model("gpt2")
    nonlinearities = find_nonlinearities(model, named_mlps(model))
    zero = torch.zeros(2, requires_grad=True)
    with nonlinearities.linearised():
        (slope,) = torch.autograd.grad(first_mlp(model).act(zero).sum(), zero)
    # GELU is x times the normal distribution function, which is 0.5 at zero.
    assert slope.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_rejects_experts(model_type: str):
    model = tiny_model(model_type)
    with pytest.raises(
        UserError, match=r"^rule: model.layers.\d.mlp \(\w+\) is not an MLP that linearised supports"
    ):
        find_nonlinearities(model, named_mlps(model))


def test_rejects_a_model_without_mlp_modules():
    model = tiny_model("opt")
    with pytest.raises(UserError, match="^rule: no MLP of OPTForCausalLM is a module of its own"):
        find_nonlinearities(model, named_mlps(model))


@pytest.mark.parametrize("setting", [{"dtype": "bfloat16"}, {"quantization": "8bit"}, {"quantization": "4bit"}])
def test_supports_coarse_number_formats(setting: dict[str, str]):
    model = load_model(DEMO_MODEL, **setting)
    with evaluating(model):
        nonlinearities = find_nonlinearities(model, named_mlps(model))
    assert len(nonlinearities.activations) >= 8 and nonlinearities.gated == ()


def test_inplace_activations_have_the_same_gradient():
    model = tiny_model("gpt2", activation_function="relu")
    x_BTH = torch.randn(2, 3, 32)
    slopes = []
    for inplace in (False, True):
        first_mlp(model).act = nn.ReLU(inplace=inplace)
        with find_nonlinearities(model, named_mlps(model)).linearised():
            leaf_BTH = x_BTH.clone().requires_grad_()
            slopes.append(torch.autograd.grad(first_mlp(model)(leaf_BTH).sum(), leaf_BTH)[0])
    assert torch.equal(*slopes) and slopes[0].any()


def test_dropout_is_no_activation():
    model = tiny_model("gpt2")
    assert isinstance(first_mlp(model).dropout, nn.Dropout)
    activations = find_nonlinearities(model, named_mlps(model)).activations
    assert activations == tuple(block.mlp.act for block in model.transformer.h)


def test_a_shared_mlp_is_halved_once():
    model = tiny_model("llama")
    model.model.layers[1].mlp = first_mlp(model)
    assert find_nonlinearities(model, named_mlps(model)).gated == (first_mlp(model),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rejects_activations_with_weights(dtype: torch.dtype):
    model = tiny_model("apertus", dtype)
    with pytest.raises(UserError, match=r"\(ApertusMLP\) is not an MLP that linearised supports"):
        find_nonlinearities(model, named_mlps(model))


def test_linearises_mlps_with_keyword_inputs():
    model = tiny_model("llama")
    nonlinearities = find_nonlinearities(model, named_mlps(model))
    mlp, x_BTH = first_mlp(model), torch.randn(2, 3, 32, requires_grad=True)
    mlp.forward = lambda hidden_states, forward=mlp.forward: forward(hidden_states)
    with nonlinearities.linearised():
        slopes = [torch.autograd.grad(output.sum(), x_BTH)[0] for output in (mlp(x_BTH), mlp(hidden_states=x_BTH))]
    assert torch.equal(*slopes)
