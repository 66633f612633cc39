"""The self-test on blocks with simple arithmetic, where the write is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import locate
from lit_attr.models.selftest import BlockCall, are_all, is_added, is_needed_last_only, record


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
    assert location.top_at_last_token
    batch = collate_contrasts(random_contrasts((3, 5, 4)))
    fast = attribute_batch(model, location, batch)
    whole = attribute_batch(model, location._replace(top_at_last_token=False), batch)
    torch.testing.assert_close(fast[4:], whole[4:])
    assert fast.scores_sum_BLT[:, -1].count_nonzero() == 3
    assert not locate(model, layers=[0]).top_at_last_token
    assert not locate(model, component="attention").top_at_last_token


class Mixing(nn.Module):
    """Adds the mean over all tokens."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.mean(1, keepdim=True)


def test_a_top_mlp_that_mixes_tokens_runs_at_all_tokens():
    model = tiny_model("gpt2")
    top = model.transformer.h[-1].mlp
    assert is_needed_last_only(model, top)
    top.c_fc = nn.Sequential(Mixing(), top.c_fc)
    assert not is_needed_last_only(model, top)
