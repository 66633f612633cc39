"""The self-test on blocks with simple arithmetic, where the write is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn
from toys import ToyModel
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import locate
from lit_attr.models.selftest import BlockCall, are_all, is_added, is_needed_last_only, record, short_input_BT


class Doubling(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * hidden


class Block(nn.Module):
    """Two modules that double their input, in an arrangement given by the test."""

    def __init__(self, arrangement: Callable[[Tensor, nn.Module, nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.arrangement = Doubling(), Doubling(), arrangement

    def forward(self, hidden: Tensor) -> Tensor:
        return self.arrangement(hidden, self.first, self.second)


def unit(hidden: Tensor) -> Tensor:
    return hidden / hidden.norm(dim=-1, keepdim=True)


def call_of(arrangement: Callable[[Tensor, nn.Module, nn.Module], Tensor], dtype: torch.dtype) -> BlockCall:
    torch.manual_seed(0)
    hidden_BTH = unit(torch.randn(2, 5, 16)).to(dtype)  # rows of equal norm, as after a norm
    block = Block(arrangement)
    return BlockCall(block, (), {}, hidden_BTH, [block.first, block.second])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("arrangement", "added"),
    [
        (lambda x, f, g: x + f(x), True),
        (lambda x, f, g: x + 0.22 * f(x), True),
        (lambda x, f, g: f(x).add_(x), True),  # in place
        (lambda x, f, g: x + f(x) + unit(g(x)), True),  # beside another
        (lambda x, f, g: x + 100 * unit(g(x)) + f(unit(x)), True),  # beside a larger one
        (lambda x, f, g: x + unit(f(x)), False),  # normalised afterwards
        (lambda x, f, g: unit(x + f(x)), False),  # together with the residual
        (lambda x, f, g: x + f(x).relu(), False),
        (lambda x, f, g: x + f(x).roll(1, dims=1), False),  # at another token
        (lambda x, f, g: x + f(x) * torch.arange(1, 17).to(x), False),  # an own factor for each number
        (lambda x, f, g: f(x), False),  # the module adds the residual
        (lambda x, f, g: f(x) + unit(g(x)), False),
        (lambda x, f, g: x + f(x) + unit(g(x + f(x))), False),  # the other module depends on it
        (lambda x, f, g: x + 0 * f(x), False),  # its output is ignored
    ],
)
def test_recognises_what_is_added_to_the_residual_stream(arrangement: Callable, added: bool, dtype: torch.dtype):
    call = call_of(arrangement, dtype)
    assert is_added(call, call.block.first, silent=()) is added


def test_dependent_modules_can_be_silent():
    call = call_of(lambda x, f, g: x + f(unit(x)) + g(unit(x + f(unit(x)))), torch.float32)
    assert not is_added(call, call.block.first, silent=())
    assert is_added(call, call.block.first, silent=(call.block.second,))
    assert is_added(call, call.block.second, silent=())


def test_recognises_whether_others_write_as_well():
    call = call_of(lambda x, f, g: x + f(x) + g(x), torch.float32)
    assert are_all(call, (call.block.first, call.block.second))
    assert not are_all(call, (call.block.first,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("is_decoder", "looks_ahead"), [(True, False), (False, True)])
def test_recognises_whether_a_model_looks_ahead(is_decoder: bool, looks_ahead: bool, dtype: torch.dtype):
    model = tiny_model("roberta", dtype, is_decoder=is_decoder)
    assert record(model, []).looks_ahead is looks_ahead


def test_records_calls_and_shapes():
    model = tiny_model("opt")
    recording = record(model, list(model.model.decoder.layers))
    assert [call.block for call in recording.calls] == list(model.model.decoder.layers)
    block, call = model.model.decoder.layers[1], recording.calls[1]
    assert call.hidden_BTH.shape == (2, 5, 32)
    assert recording.shapes[block.fc2] == [(10, 32)]
    assert recording.shapes[block.fc1] == [(10, 48)]
    assert block.fc2 in call.writers
    assert block.fc1 not in call.writers
    with torch.no_grad():
        torch.testing.assert_close(
            call.output_BTH(call.hidden_BTH, {}), block(call.hidden_BTH, *call.args, **call.kwargs)
        )


@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "gpt_neox", "mixtral", "opt", "bloom", "gemma2", "falcon"]
)
def test_the_top_mlp_runs_at_the_last_token_only(model_type: str, monkeypatch: pytest.MonkeyPatch):
    """Its writes at other tokens reach no logit: their scores are 0, and all other scores are unchanged."""
    model = tiny_model(model_type)
    location = locate(model)
    assert location.top_mlp is location.modules[-1]
    batch = collate_contrasts(random_contrasts((3, 5, 4)))
    fast = attribute_batch(model, location, batch)
    whole = attribute_batch(model, location._replace(top_mlp=None), batch)
    torch.testing.assert_close(fast[4:], whole[4:])
    assert fast.scores_sum_BLT[:, -1].count_nonzero() == 3
    assert locate(model, layers=[0]).top_mlp is None
    # So that a run of attention alone has the numbers of one of both components.
    assert locate(model, component="attention").top_mlp is location.top_mlp


class Mixing(nn.Module):
    """Adds the mean over all tokens."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.mean(1, keepdim=True)


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=short_input_BT(model), use_cache=False).logits


def test_a_top_mlp_that_mixes_tokens_runs_at_all_tokens():
    model = tiny_model("gpt2")
    top = model.transformer.h[-1].mlp
    assert is_needed_last_only(model, top, logits_of(model))
    # Logits that were recorded with another kernel for attention.
    assert is_needed_last_only(model, top, 1.01 * logits_of(model))
    top.c_fc = nn.Sequential(Mixing(), top.c_fc)
    assert not is_needed_last_only(model, top, logits_of(model))


class Cut(nn.Module):
    """A module that leaves the graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden).detach()


class NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        return None


class Stuck(Cut):
    """A module of an operation that passes on no gradient, as torch's quantised ones."""

    def forward(self, hidden: Tensor) -> Tensor:
        return NoBackward.apply(self.inner(hidden))


NO_GRADIENT = r": no gradient passes through it, .*; load the model in a format that has gradients"


@pytest.mark.parametrize("kind", [Cut, Stuck])
@pytest.mark.parametrize("component", ["mlp", "attention", "block"])
@pytest.mark.parametrize(
    "path", ["lm_head", "model.norm", "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"]
)
def test_names_the_module_at_which_gradients_end(path: str, component: str, kind: type[Cut]):
    """Also where others pass beside it, in the residual stream, and scores would be wrong in silence."""
    model = tiny_model("llama")
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, kind(model.get_submodule(path)))
    with pytest.raises(UserError, match=rf"^{path} \({kind.__name__}\){NO_GRADIENT}"):
        locate(model, component=component)


@pytest.mark.parametrize("kind", [Cut, Stuck])
@pytest.mark.parametrize("rule", ["gradient", "integrated", "exact"])
def test_a_pass_without_the_self_test_names_it_as_well(rule: RuleName, kind: type[Cut]):
    model = tiny_model("llama")
    model.lm_head = kind(model.lm_head)
    location = locate(model, self_test=False)
    batch = collate_contrasts(random_contrasts((3, 5)))
    prepared = find_rule(model, location, rule)
    if rule == "exact":  # which needs none
        assert attribute_batch(model, location, batch, rule=prepared).scores_sum_BLT.any()
        return
    with pytest.raises(UserError, match=rf"^lm_head \({kind.__name__}\){NO_GRADIENT}"):
        attribute_batch(model, location, batch, rule=prepared)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class CutAtTheEnd(ToyModel):
    """A model that leaves the graph in its own forward pass, in none of its modules."""

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(input_ids, use_cache).logits.detach())


def test_a_model_without_gradients_in_which_no_module_ends_them():
    with pytest.raises(UserError, match="^no gradient of the logits comes to the embedding; load the model in an"):
        locate(CutAtTheEnd(), component="blocks.{layer}.mlp")


def run_spare(block: Any, args: tuple[Tensor]) -> None:
    block.spare(args[0])


def test_a_scored_module_without_effect_is_refused():
    model = tiny_model("llama")
    path = "model.layers.{layer}.spare"
    for block in model.model.layers:
        block.spare = nn.Identity()
        block.register_forward_pre_hook(run_spare)
    location = locate(model, component=path, self_test=False)
    with pytest.raises(UserError, match="component: no gradient of the logits arrives at its output"):
        attribute_batch(model, location, collate_contrasts(random_contrasts((1,))))


@pytest.mark.parametrize("with_head", [True, False])
def test_dynamic_quantisation_is_refused_in_one_line(with_head: bool):
    model = tiny_model("llama")
    quantize = partial(torch.ao.quantization.quantize_dynamic, qconfig_spec={nn.Linear}, dtype=torch.qint8)
    if with_head:
        model = quantize(model)
    else:
        model.model = quantize(model.model)
    name = "lm_head" if with_head else r"model\.layers\.0\.self_attn\.o_proj"
    with pytest.raises(UserError, match=rf"^{name} \(Linear\){NO_GRADIENT}"):
        locate(model)
