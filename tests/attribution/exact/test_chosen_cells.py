"""Exact effects of chosen cells against those of every cell."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor
from transformers import GPT2LMHeadModel

from lit_attr.attribution.exact.effects import exact_effects_BLT, resolved_effects
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import locate

# With parallel blocks, experts, tokens of all rows in one axis, and, last, without the reuse.
MODEL_TYPES = ["gpt2", "llama", "gpt_neox", "gemma2", "falcon", "phi", "mixtral", "opt", "bloom"]
LENGTHS = (9, 3, 6, 1, 9)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> ContrastBatch:
    return collate_contrasts(random_contrasts(lengths))


def random_mask(share: float) -> Tensor:
    return torch.rand(len(LENGTHS), 2, max(LENGTHS), generator=torch.Generator().manual_seed(5)) < share


def last_tokens() -> Tensor:
    position_T, last_B = torch.arange(max(LENGTHS)), torch.tensor(LENGTHS) - 1
    return (position_T == last_B[:, None])[:, None].repeat(1, 2, 1)


def layer_alone(layer: int) -> Tensor:
    return torch.tensor([[layer == 0], [layer == 1]]).repeat(len(LENGTHS), 1, 1).expand(-1, -1, max(LENGTHS))


def assert_chosen(found_BLT: Tensor, every_BLT: Tensor, wanted_BLT: Tensor) -> None:
    assert not found_BLT[~wanted_BLT].any()
    atol_B11 = 1e-5 * every_BLT.abs().amax((1, 2), keepdim=True)
    assert ((found_BLT - every_BLT).abs() <= atol_B11)[wanted_BLT].all()
    assert found_BLT.any()


@pytest.mark.parametrize("component", ["mlp", "attention", "block"])
@pytest.mark.parametrize(
    "model_type", ["gpt2", "llama", "gpt_neox", "gemma2", "falcon", "phi", "mixtral", "opt", "bloom"]
)
def test_chosen_cells_are_those_of_all(model_type: str, component: str, warnings: list[str]):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model, component=component), batch_of()
    every_BLT = exact_effects_BLT(model, location, batch)
    for wanted_BLT in (random_mask(0.2), random_mask(0.5), last_tokens(), layer_alone(0), layer_alone(1)):
        found_BLT = exact_effects_BLT(model, location, batch, wanted_BLT=wanted_BLT)
        assert_chosen(found_BLT, every_BLT, wanted_BLT)
    assert bool(warnings) == (model_type == "bloom")


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_chosen_cells_take_other_writes(model_type: str):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model), batch_of()
    wanted_BLT = random_mask(0.3)
    shape = (len(LENGTHS), 2, max(LENGTHS), 32)
    replacement_BLTH = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    every_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH)
    found_BLT = exact_effects_BLT(model, location, batch, replacement_BLTH, wanted_BLT=wanted_BLT)
    assert_chosen(found_BLT, every_BLT, wanted_BLT)


def test_chosen_cells_of_a_chosen_layer(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    random_model.double()
    batch = collate_contrasts(sample_contrasts[:6])
    every_BLT = exact_effects_BLT(random_model, locate(random_model), batch)
    location = locate(random_model, layers=[1, 2])
    wanted_BLT = torch.rand(6, 2, every_BLT.shape[2], generator=torch.Generator().manual_seed(0)) < 0.2
    found_BLT = exact_effects_BLT(random_model, location, batch, wanted_BLT=wanted_BLT)
    assert_chosen(found_BLT, every_BLT[:, 1:3], wanted_BLT)


def test_a_model_with_wrong_positions_shows_in_chosen_cells(warnings: list[str]):
    """Position 0 reuses no earlier token, so the comparison takes another cell."""
    model = tiny_model("llama", torch.float64)
    location, batch = locate(model), batch_of()
    every_BLT = exact_effects_BLT(model, location, batch)
    wanted_BLT = random_mask(0.2)
    wanted_BLT[:, :, 0] = True

    def positions_from_0(_, args, kwargs):
        return args, {**kwargs, "position_ids": torch.arange(kwargs["input_ids"].shape[1])[None]}

    handle = model.model.register_forward_pre_hook(positions_from_0, with_kwargs=True)
    found_BLT = exact_effects_BLT(model, location, batch, wanted_BLT=wanted_BLT)
    handle.remove()
    assert_chosen(found_BLT, every_BLT, wanted_BLT)
    assert "the effects differ from those of a whole forward pass" in warnings[0]


def test_no_chosen_cell_takes_no_pass():
    model = tiny_model("llama")
    location, batch = locate(model), batch_of()
    # Padding, and the write of the last layer below the last token, are 0 without a pass.
    wanted_BLT = torch.zeros(len(LENGTHS), 2, max(LENGTHS), dtype=torch.bool)
    wanted_BLT[1, :, 3:] = True
    wanted_BLT[0, 1, :-1] = True
    runs: list[int] = []
    model.model.register_forward_hook(lambda *_: runs.append(1))
    effects_BLT, resolution_B = resolved_effects(model, location, batch, wanted_BLT=wanted_BLT)
    assert not effects_BLT.any() and effects_BLT.shape == wanted_BLT.shape
    assert not resolution_B.any() and not runs


def test_the_cost_is_that_of_the_chosen_cells():
    """Tokens through all layers: a run without change, one row of the comparison, (L − l)(T − t) a cell."""
    layers, width, rows = 12, 10, 8
    model = tiny_model("gpt2", n_layer=layers)
    location, batch = locate(model), batch_of((width,) * rows)
    wanted_BLT = torch.rand(rows, layers, width, generator=torch.Generator().manual_seed(0)) < 0.1
    wanted_BLT[:, -1, :-1] = False
    tokens: list[int] = []
    for block in model.transformer.h:
        block.ln_1.register_forward_hook(lambda _, __, output: tokens.append(output.shape[0] * output.shape[1]))
    exact_effects_BLT(model, location, batch, wanted_BLT=wanted_BLT)
    _, place_N, token_N = wanted_BLT.nonzero().unbind(1)
    cells = ((layers - place_N) * (width - token_N)).sum().item()
    with_one_row = layers * width * (rows + 1) + cells
    # Below the lowest chosen layer, a pass has the row that the model is called with.
    assert with_one_row <= sum(tokens) <= with_one_row + layers * width * (width + 1) // 2


def test_resolution_is_measured_where_every_cell_is_wanted():
    model = tiny_model("llama", torch.bfloat16)
    location, batch = locate(model), batch_of()
    with torch.no_grad():
        logits_BTV = model(batch.token_ids_BT).logits.float()
    wanted_BLT = random_mask(0.5)
    wanted_BLT[3] = False
    chosen_B = resolved_effects(model, location, batch, wanted_BLT=wanted_BLT).resolution_B
    measured_B = resolved_effects(model, location, batch).resolution_B
    for row, contrast in enumerate(batch.contrasts):
        answers = [contrast.true_token_id, contrast.false_token_id]
        largest = logits_BTV[row, len(contrast.token_ids) - 1, answers].abs().max().item()
        # bfloat16 has 7 bits after the first one.
        spacing = 0.0 if row == 3 else 2.0 ** (math.floor(math.log2(largest)) - 7)
        assert chosen_B[row].item() == spacing
        assert measured_B[row].item() >= spacing


def test_rejects_other_masks():
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of()
    with pytest.raises(UserError, match=r"^wanted_BLT: it is torch.float32 of shape \[5, 2, 9\]; give booleans"):
        exact_effects_BLT(model, location, batch, wanted_BLT=torch.ones(5, 2, 9))
    with pytest.raises(UserError, match=r"^wanted_BLT: .* shape \[5, 3, 9\]; give booleans of shape \[5, 2, 9\]"):
        exact_effects_BLT(model, location, batch, wanted_BLT=torch.ones(5, 3, 9, dtype=torch.bool))
