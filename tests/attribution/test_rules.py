"""Rules against models whose forward has the rule written into it, and what they leave as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from architectures import CONFIGS, random_contrasts, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.rules import RuleName, find_rule
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import collate_contrasts
from lit_attr.models.hooks import first_tensor, undisturbed
from lit_attr.models.location import locate

NO_MLP_MODULE = {"opt", "xglm", "biogpt"}
EXPERTS = {"mixtral", "qwen2_moe"}
OWN_ATTENTION = {"gpt_neo", "gptj", "bloom", "falcon", "mpt", "codegen", "xglm"}
SETTINGS: list[tuple[RuleName, bool, set[str]]] = [
    ("frozen-norm", False, set()),
    ("linearised", False, NO_MLP_MODULE | EXPERTS),
    ("linearised", True, NO_MLP_MODULE | EXPERTS | OWN_ATTENTION),
    ("integrated", False, set()),
    ("norm-secant", False, {"olmo2"}),
]
SETTING_NAMES = ["frozen-norm", "linearised", "linearised, frozen attention", "integrated", "norm-secant"]


def layer_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt().detach() * norm.weight
            + norm.bias
        )

    return forward


def rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt().detach() * norm.weight


def gpt2_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        inner = mlp.c_fc(x)
        return mlp.c_proj(inner * (mlp.act(inner) / inner).detach())

    return forward


def llama_mlp(mlp: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        held = gate * (mlp.act_fn(gate) / gate).detach()
        return mlp.down_proj(0.5 * held * up.detach() + 0.5 * held.detach() * up)

    return forward


WRITTEN = {"gpt2": (layer_norm, gpt2_mlp), "llama": (rms_norm, llama_mlp)}


@contextmanager
def written_out(model: PreTrainedModel, *, mlps: bool, attention: bool) -> Iterator[None]:
    """The model with the rules in its forward, for PyTorch's own backward."""
    norm, mlp = WRITTEN[model.config.model_type]
    changed = []
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower():
            module.forward = norm(module)
            changed.append(module)
        elif mlps and name.endswith(".mlp"):
            module.forward = mlp(module)
            changed.append(module)
    softmax = nn.functional.softmax
    if attention:
        model.set_attn_implementation("eager")
        nn.functional.softmax = lambda *args, **kwargs: softmax(*args, **kwargs).detach()
    try:
        yield
    finally:
        nn.functional.softmax = softmax
        for module in changed:
            del module.forward


@pytest.mark.parametrize("model_type", WRITTEN)
@pytest.mark.parametrize(
    ("name", "attention"), [("frozen-norm", False), ("linearised", False), ("linearised", True)]
)
def test_gradients_are_those_of_the_rule_written_out(model_type: str, name: RuleName, attention: bool):
    model = tiny_model(model_type, torch.float64)
    location, contrasts = locate(model), random_contrasts((7, 4))
    rule = find_rule(model, location, name, frozen_attention=attention)
    scores = attribute_batch(model, location, collate_contrasts(contrasts), rule=rule)
    assert scores.rule == name
    plain = attribute_batch(model, location, collate_contrasts(contrasts))
    assert (scores.scores_sum_BLT - plain.scores_sum_BLT).abs().max() > 1e-3 * plain.scores_sum_BLT.abs().max()
    for row, contrast in enumerate(contrasts):
        writes: list[Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _, __, output, writes=writes: writes.append(first_tensor(output)))
            for module in location.modules
        ]
        with written_out(model, mlps=name == "linearised", attention=attention):
            logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        difference = logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]
        gradients = torch.autograd.grad(difference, writes)
        for layer, (write, gradient) in enumerate(zip(writes, gradients, strict=True)):
            products_TH = (write * gradient)[0].detach()
            length = len(contrast.token_ids)
            size = scores.scores_sum_BLT.abs().max().item()
            for found_BLT, expected_T in (
                (scores.scores_sum_BLT, products_TH.sum(-1)),
                (scores.scores_l2_BLT, products_TH.norm(dim=-1)),
            ):
                torch.testing.assert_close(found_BLT[row, layer, :length], expected_T, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_integrated_is_the_mean_gradient_on_the_path(model_type: str):
    """Each point of the path is a model of its own here, in which the write is a fraction of itself."""
    model = tiny_model(model_type, torch.float64)
    location, (contrast,) = locate(model), random_contrasts((5,))
    rule = find_rule(model, location, "integrated", steps=3)
    scores = attribute_batch(model, location, collate_contrasts([contrast]), rule=rule)
    for place, module in enumerate(location.modules):
        total: Tensor | float = 0.0
        for fraction in (1 / 6, 1 / 2, 5 / 6):
            kept: list[Tensor] = []

            def scale(_, __, output, kept=kept, fraction=fraction):
                kept.append(output)
                kept.append((output.detach() * fraction).requires_grad_())
                return kept[1]

            hook = module.register_forward_hook(scale)
            logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
            hook.remove()
            difference = logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]
            total = total + kept[0].detach() * torch.autograd.grad(difference, kept[1])[0] / 3
        expected_T = total.reshape(5, -1).sum(-1)
        torch.testing.assert_close(scores.scores_sum_BLT[0, place], expected_T, rtol=1e-5, atol=1e-9)


def state_of(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            type(module),
            module.training,
            dict(vars(module)).keys(),
            "forward" in vars(module),
            [len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)],
            [(parameter.requires_grad, parameter.data_ptr(), parameter.grad) for parameter in module.parameters()],
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize(("name", "attention", "refused"), SETTINGS, ids=SETTING_NAMES)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_forward_and_the_model_stay_what_they_were(
    model_type: str, name: RuleName, attention: bool, refused: set[str]
):
    model = tiny_model(model_type)
    batch = collate_contrasts(random_contrasts((6, 3)))
    before, registry = state_of(model), dict(vars(ALL_ATTENTION_FUNCTIONS))
    location = locate(model)
    if model_type in refused:
        with pytest.raises(UserError, match=r"^model\.(rule|frozen_attention): "):
            find_rule(model, location, name, frozen_attention=attention)
        assert state_of(model) == before
        return
    plain = attribute_batch(model, location, batch)
    rule = find_rule(model, location, name, frozen_attention=attention)
    with torch.no_grad(), undisturbed(model, torch.device("cpu")):
        logits = model(batch.token_ids_BT, use_cache=False).logits
        with rule.held():
            under_rule = model(batch.token_ids_BT, use_cache=False).logits
    torch.testing.assert_close(under_rule, logits, rtol=0, atol=1e-6)
    scores = attribute_batch(model, location, batch, rule=rule)
    for field in ("logit_true_B", "logit_false_B", "prob_true_B", "rank_true_B"):
        torch.testing.assert_close(getattr(scores, field), getattr(plain, field), rtol=0, atol=1e-6)
    assert scores.scores_sum_BLT.isfinite().all() and scores.scores_sum_BLT.any()
    assert state_of(model) == before
    assert vars(ALL_ATTENTION_FUNCTIONS) == registry


def test_a_rule_is_undone_after_an_error():
    model = tiny_model("llama")
    rule = find_rule(model, locate(model), "linearised", frozen_attention=True)
    before, registry = state_of(model), dict(vars(ALL_ATTENTION_FUNCTIONS))

    def fail() -> None:
        with rule.held():
            assert state_of(model) != before
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert state_of(model) == before
    assert vars(ALL_ATTENTION_FUNCTIONS) == registry


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("relp", {}, "model.rule: 'relp' is none of gradient, frozen-norm"),
        ("integrated", {"steps": 0}, "model.integration_steps: 0 is less than 1"),
        ("gradient", {"frozen_attention": True}, "model.frozen_attention: belongs to the rule linearised"),
    ],
)
def test_refuses_settings(name: Any, options: dict[str, Any], message: str):
    model = tiny_model("gpt2")
    with pytest.raises(UserError, match=message):
        find_rule(model, locate(model), name, **options)


def test_linearised_refuses_what_lies_inside_a_gated_mlp():
    model = tiny_model("llama")
    location = locate(model, component="model.layers.{layer}.mlp.up_proj")
    with pytest.raises(UserError, match="model.component: lies inside a gated MLP"):
        find_rule(model, location, "linearised")


def test_another_librarys_attention_is_put_back():
    model = tiny_model("llama")
    rule = find_rule(model, locate(model), "linearised", frozen_attention=True)
    theirs = ALL_ATTENTION_FUNCTIONS.get_interface
    vars(ALL_ATTENTION_FUNCTIONS)["get_interface"] = theirs
    try:
        with rule.held(), rule.held():
            assert ALL_ATTENTION_FUNCTIONS.get_interface is not theirs
        assert vars(ALL_ATTENTION_FUNCTIONS)["get_interface"] is theirs
    finally:
        del vars(ALL_ATTENTION_FUNCTIONS)["get_interface"]
