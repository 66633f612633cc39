"""A model that torch.compile has compiled in place scores as an uncompiled copy, and stays compiled."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, get_args

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.attribution.ablation import mean_ablation
from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.comparison import compare_exactly
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.identity import model_identity
from lit_attr.models.location import locate

compiled_graphs: list[int] = []


def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """A backend that runs a graph as it is."""
    compiled_graphs.append(len(graph.graph.nodes))
    return graph.forward


def whole(model: PreTrainedModel) -> nn.Module:
    model.compile(backend=counting)
    return model


def blocks_wrapped(model: PreTrainedModel) -> nn.Module:
    for name, block in model.model.layers.named_children():
        setattr(model.model.layers, name, torch.compile(block, backend=counting))
    return model


def blocks_in_place(model: PreTrainedModel) -> nn.Module:
    for block in model.model.layers:
        block.compile(backend=counting)
    return model


def parts_wrapped(model: PreTrainedModel) -> nn.Module:
    for block in model.model.layers:
        block.mlp = torch.compile(block.mlp, backend=counting)
        block.input_layernorm = torch.compile(block.input_layernorm, backend=counting)
    model.lm_head = torch.compile(model.lm_head, backend=counting)
    return model


def forward_replaced(model: PreTrainedModel) -> nn.Module:
    model.forward = torch.compile(model.forward, backend=counting)
    return model


def wrapped(model: PreTrainedModel) -> nn.Module:
    return torch.compile(model, backend=counting)


WAYS = [whole, blocks_wrapped, blocks_in_place, parts_wrapped, forward_replaced, wrapped]


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    torch._dynamo.reset()
    compiled_graphs.clear()


def compiled_and_plain(compile_model: Callable[[PreTrainedModel], nn.Module]) -> tuple[PreTrainedModel, Any]:
    plain = tiny_model("llama")
    model: Any = compile_model(deepcopy(plain))
    model(input_ids=torch.ones(2, 6, dtype=torch.int64), use_cache=False).logits.sum().backward()
    assert compiled_graphs
    return plain, model


@pytest.mark.parametrize("compile_model", WAYS)
def test_every_rule_scores_as_for_an_uncompiled_copy(compile_model: Callable):
    plain, model = compiled_and_plain(compile_model)
    batch = collate_contrasts(random_contrasts((3, 6)))
    for component in ("mlp", "attention", "block"):
        locations = locate(plain, component=component), locate(model, component=component)
        assert len({each._replace(modules=(), top_mlp=None) for each in locations}) == 1
    locations = locate(plain), locate(model)
    for name in get_args(RuleName):
        scores = [
            attribute_batch(each, location, batch, rule=find_rule(each, location, name))
            for each, location in zip((plain, model), locations, strict=True)
        ]
        assert torch.equal(scores[0].scores_sum_BLT, scores[1].scores_sum_BLT), name
        assert torch.equal(scores[0].logit_true_B, scores[1].logit_true_B)


@pytest.mark.parametrize("compile_model", WAYS)
def test_exact_effects_are_those_of_an_uncompiled_copy(compile_model: Callable, caplog: pytest.LogCaptureFixture):
    plain, model = compiled_and_plain(compile_model)
    contrasts = random_contrasts((3, 6))
    batch = collate_contrasts(contrasts)
    locations = locate(plain), locate(model)
    pairs = [*zip((plain, model), locations, strict=True)]
    found = [exact_effects_BLT(*pair, batch) for pair in pairs]
    assert torch.equal(*found)
    assert "whole forward pass" not in caplog.text
    assert torch.equal(*(mean_ablation(*pair, [batch]).mean_LH for pair in pairs))
    first, second = (compare_exactly(*pair, contrasts[1]).curves for pair in pairs)
    assert first is not None and second is not None
    assert torch.equal(first.sufficiency_BRP, second.sufficiency_BRP)


@pytest.mark.parametrize("compile_model", WAYS)
def test_the_model_stays_compiled(compile_model: Callable):
    _, model = compiled_and_plain(compile_model)
    modules = [*model.named_modules()]
    compiled_calls = [vars(module).get("_compiled_call_impl") for _, module in modules]
    forwards = [vars(module).get("forward") for _, module in modules]
    graphs = len(compiled_graphs)
    location = locate(model)
    attribute_batch(model, location, collate_contrasts(random_contrasts((3, 6))))
    assert len(compiled_graphs) == graphs
    assert [*model.named_modules()] == modules
    assert [vars(module).get("_compiled_call_impl") for _, module in modules] == compiled_calls
    assert [vars(module).get("forward") for _, module in modules] == forwards
    # As in a training that goes on: what was compiled is still valid.
    model(input_ids=torch.ones(2, 6, dtype=torch.int64), use_cache=False).logits.sum().backward()
    assert len(compiled_graphs) == graphs


@pytest.mark.parametrize("compile_model", WAYS)
def test_a_compiled_model_has_the_same_identity(compile_model: Callable):
    """So that a run's folder goes on with it."""
    plain, model = compiled_and_plain(compile_model)
    assert model_identity(model) == model_identity(plain)


def test_a_failing_pass_leaves_the_model_compiled():
    _, model = compiled_and_plain(blocks_wrapped)
    modules = [*model.named_modules()]

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    location = locate(model)
    handle = location.modules[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        attribute_batch(model, location, collate_contrasts(random_contrasts((3,))))
    handle.remove()
    assert [*model.named_modules()] == modules
