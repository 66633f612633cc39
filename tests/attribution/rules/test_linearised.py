"""Frozen norms and linearised models, against models with the rule written into their forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.hooks import first_tensor
from lit_attr.models.location import locate


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
    """The model with the rule written into its forward, for PyTorch's own backward."""
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


def test_rejects_modules_inside_a_gated_mlp():
    model = tiny_model("llama")
    location = locate(model, component="model.layers.{layer}.mlp.up_proj")
    with pytest.raises(ArgumentError, match="^component: it lies inside a gated MLP"):
        find_rule(model, location, "linearised")


def test_another_librarys_attention_is_put_back():
    model = tiny_model("llama")
    rule = find_rule(model, locate(model), "linearised", frozen_attention=True)
    attention = model.model.layers[0].self_attn
    theirs, registry = attention.forward, dict(vars(ALL_ATTENTION_FUNCTIONS))
    attention.forward = theirs
    with rule.held(), rule.held():
        assert attention.forward is not theirs
        assert vars(ALL_ATTENTION_FUNCTIONS) == registry
    assert vars(attention)["forward"] is theirs


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neo", "gptj", "bloom", "falcon", "mpt", "codegen"])
@pytest.mark.parametrize("attention", ["eager", None])
def test_frozen_attention_equals_a_detached_softmax(
    model_type: str, attention: str | None, monkeypatch: pytest.MonkeyPatch
):
    """Also where a model does not attend by transformers' common functions."""
    settings = {} if attention is None else {"attn_implementation": attention}
    model = tiny_model(model_type, torch.float64, **settings)
    location, batch = locate(model), collate_contrasts(random_contrasts((7, 4)))
    frozen = find_rule(model, location, "linearised", frozen_attention=True)
    found_BLT = attribute_batch(model, location, batch, rule=frozen).scores_sum_BLT
    model = tiny_model(model_type, torch.float64, attn_implementation="eager")
    location = locate(model)
    free = find_rule(model, location, "linearised")
    free_BLT = attribute_batch(model, location, batch, rule=free).scores_sum_BLT
    softmax = nn.functional.softmax
    monkeypatch.setattr(nn.functional, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).detach())
    expected_BLT = attribute_batch(model, location, batch, rule=free).scores_sum_BLT
    size = expected_BLT.abs().max().item()
    assert (free_BLT - expected_BLT).abs().max() > 1e-3 * size
    torch.testing.assert_close(found_BLT, expected_BLT, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("gone", [[0, 1], [1]])
def test_rejects_attention_without_a_softmax(gone: list[int]):
    model = tiny_model("llama")
    for layer in gone:
        model.model.layers[layer].self_attn.forward = lambda hidden_states, **_: (hidden_states.cumsum(1), None)
    with pytest.raises(ArgumentError, match="^frozen_attention: LlamaForCausalLM does not make its attention"):
        find_rule(model, locate(model), "linearised", frozen_attention=True)
    find_rule(model, locate(model), "linearised")


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("is_held", [(True, True), (True, False), (False, True)])
def test_two_models_in_two_threads_keep_their_scores(model_type: str, attention: str, is_held: tuple[bool, bool]):
    """The first pass begins first and ends while the second one is in its first block."""
    models = [tiny_model(model_type), tiny_model(model_type)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.1)
    batch = collate_contrasts(random_contrasts((9, 4)))
    second_has_begun, first_has_ended = threading.Event(), threading.Event()

    def attribute(place: int) -> AttributionBatch:
        return attribute_batch(models[place], locations[place], batch, rule=rules[place])

    locations, rules = [], []
    for model, frozen in zip(models, is_held, strict=True):
        model.set_attn_implementation(attention)
        locations.append(locate(model))
        rules.append(find_rule(model, locations[-1], "linearised", frozen_attention=frozen))
    alone = [attribute(0), attribute(1)]
    assert not torch.equal(alone[0].scores_sum_BLT, alone[1].scores_sum_BLT)

    def wait_for(event: threading.Event) -> None:
        assert event.wait(60)

    def begin_second(*_: Any) -> None:
        second_has_begun.set()
        wait_for(first_has_ended)

    # In the forward pass, while the attention of each model is held.
    models[0].get_input_embeddings().register_forward_hook(lambda *_: wait_for(second_has_begun))
    models[1].get_input_embeddings().register_forward_hook(begin_second)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(attribute, place) for place in (0, 1)]
        running[0].add_done_callback(lambda _: first_has_ended.set())
        found = [each.result(120) for each in running]
    for batch_found, batch_alone in zip(found, alone, strict=True):
        assert torch.equal(batch_found.scores_sum_BLT, batch_alone.scores_sum_BLT)
        assert torch.equal(batch_found.scores_l2_BLT, batch_alone.scores_l2_BLT)
