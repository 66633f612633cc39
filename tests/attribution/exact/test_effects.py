"""Exact effects against whole forward passes, one for each row, layer and token."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, contrast_of, random_contrasts, tiny_model
from torch import Tensor
from toys import ToyModel
from transformers import GPT2LMHeadModel, PreTrainedModel
from whole_forwards import expected_effects

from lit_attr.attribution.ablation import mean_ablation
from lit_attr.attribution.exact.effects import exact_effects_BLT, resolved_effects
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location, locate

# Their masks or biases have as many rows as the model's input, so every cell takes a whole forward pass.
SLOW = {"bloom", "gpt_bigcode", "xglm"}
MAIN = ["gpt2", "llama", "gpt_neox", "gemma2"]
LENGTHS = (9, 3, 6, 1, 9)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> ContrastBatch:
    return collate_contrasts(random_contrasts(lengths))


def assert_exact(
    effects_BLT: Tensor,
    model: PreTrainedModel,
    location: Location,
    batch: ContrastBatch,
    writes_BLTH: Tensor | None = None,
) -> None:
    assert effects_BLT.dtype == torch.float32
    for row, contrast in enumerate(batch.contrasts):
        length = len(contrast.token_ids)
        expected_LT = expected_effects(
            model, location, contrast, None if writes_BLTH is None else writes_BLTH[row]
        )
        size = expected_LT.abs().max().item()
        assert size > 1e-3
        torch.testing.assert_close(effects_BLT[row, :, :length], expected_LT, rtol=0, atol=1e-5 * size)
        assert not effects_BLT[row, :, length:].any()


def test_equals_a_network_computed_by_hand(warnings: list[str]):
    """The toy of test_gradient: logit_true − logit_false is 506 − 144 = 362.

    Without block 1's write at the last token, the stream ends at (22, 8): 22 − 16 = 6. Without block 0's write at
    the last token, block 1 sums (2, 6) + (4, 1) and outputs (42, 56): 42 − 112 = −70. Without block 0's write at
    the first token, block 1 sums (1, 2) + (20, 2) and outputs (462, 20): 462 − 40 = 422. The toy has no cache.
    """
    model = ToyModel()
    location = Location(
        (0, 1), tuple(block.mlp for block in model.blocks), ("blocks.0.mlp", "blocks.1.mlp"), ("mlp", "mlp")
    )
    batch = collate_contrasts([contrast_of(ids, true_token_id=0, false_token_id=1) for ids in ((0, 1), (0,))])
    effects_BLT = exact_effects_BLT(model, location, batch)
    assert effects_BLT[0].tolist() == [[362 - 422, 362 + 70], [0, 362 - 6]]
    assert effects_BLT[1, :, 1].tolist() == [0, 0]
    assert "a whole forward pass for every layer and token" in warnings[0]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_architecture_equals_whole_forward_passes(model_type: str, warnings: list[str]):
    # XGLM assigns the smallest float64 to a float32 tensor.
    model = tiny_model(model_type, torch.float32 if model_type == "xglm" else torch.float64)
    location, batch = locate(model), batch_of()
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    assert bool(warnings) == (model_type in SLOW)


@pytest.mark.parametrize("component", ["attention", "block"])
@pytest.mark.parametrize("model_type", [*MAIN, "opt", "bloom", "mixtral"])
def test_every_component_equals_whole_forward_passes(model_type: str, component: str, warnings: list[str]):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model, component=component), batch_of()
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    assert bool(warnings) == (model_type in SLOW)


@pytest.mark.parametrize("model_type", [*MAIN, "bloom", "opt"])
def test_mean_and_donor_writes_replace_the_write(model_type: str):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model), batch_of()
    mean_BLTH = mean_ablation(model, location, [batch]).replacement_BLTH(model, location, batch)
    assert_exact(exact_effects_BLT(model, location, batch, mean_BLTH), model, location, batch, mean_BLTH)
    donor_BLTH = torch.randn(mean_BLTH.shape, generator=torch.Generator().manual_seed(3))
    assert_exact(exact_effects_BLT(model, location, batch, donor_BLTH), model, location, batch, donor_BLTH)


@pytest.mark.parametrize("component", ["mlp", ["attention", "mlp"]])
@pytest.mark.parametrize(("model_type", "window", "layers"), [("gpt2", 5, 12), ("llama", 3, 4), ("bloom", 2, 2)])
def test_writes_of_several_layers_are_replaced_together(
    model_type: str, window: int, layers: int, component: str | list[str], warnings: list[str]
):
    name = "num_hidden_layers" if model_type == "llama" else "n_layer"
    model = tiny_model(model_type, torch.float64, **{name: layers})
    location, batch = locate(model, component=component), collate_contrasts(random_contrasts((5, 3)))
    found_BLT = resolved_effects(model, location, batch, window=window).effects_BLT
    donor_BLTH = torch.randn((*found_BLT.shape, 32), generator=torch.Generator().manual_seed(3))
    donated_BLT = resolved_effects(model, location, batch, donor_BLTH, window=window).effects_BLT
    for row, contrast in enumerate(batch.contrasts):
        length = len(contrast.token_ids)
        for effects_BLT, writes_LTH in ((found_BLT, None), (donated_BLT, donor_BLTH[row])):
            expected_LT = expected_effects(model, location, contrast, writes_LTH, window=window)
            size = expected_LT.abs().max().item()
            torch.testing.assert_close(effects_BLT[row, :, :length], expected_LT, rtol=0, atol=1e-5 * size)
    assert bool(warnings) == (model_type in SLOW)


@pytest.mark.parametrize("model_type", MAIN)
def test_components_side_by_side_have_the_effects_of_each(model_type: str, warnings: list[str]):
    model = tiny_model(model_type, torch.float64)
    batch = batch_of()
    together_BLT = exact_effects_BLT(model, locate(model, component=["mlp", "attention"]), batch)
    for place, component in enumerate(("mlp", "attention")):
        alone_BLT = exact_effects_BLT(model, locate(model, component=component), batch)
        torch.testing.assert_close(together_BLT[:, place::2], alone_BLT, rtol=0, atol=1e-12)
    assert not warnings


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "mistral"])
def test_a_window_shorter_than_the_prompt(model_type: str, warnings: list[str]):
    model = tiny_model(model_type, torch.float64, sliding_window=3)
    location, batch = locate(model), batch_of()
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    assert not warnings


def test_more_layers_than_two(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    random_model.double()
    location, batch = locate(random_model), collate_contrasts(sample_contrasts[:4])
    assert_exact(exact_effects_BLT(random_model, location, batch), random_model, location, batch)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_kind_of_attention(attention: str, warnings: list[str]):
    model = tiny_model("llama", torch.float64)
    model.set_attn_implementation(attention)
    location, batch = locate(model), batch_of()
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    assert not warnings


@pytest.mark.parametrize("model_type", [*MAIN, "bloom"])
def test_a_padded_batch_has_the_effects_of_its_rows_alone(model_type: str):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model), batch_of()
    together_BLT = exact_effects_BLT(model, location, batch)
    for row, contrast in enumerate(batch.contrasts):
        alone_LT = exact_effects_BLT(model, location, collate_contrasts([contrast]))[0]
        few_LT = together_BLT[row, :, : len(contrast.token_ids)]
        torch.testing.assert_close(few_LT, alone_LT, rtol=0, atol=1e-6 * alone_LT.abs().max().item())


def test_a_subset_of_layers_has_the_same_effects(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    batch = collate_contrasts(sample_contrasts[:4])
    every_BLT = exact_effects_BLT(random_model, locate(random_model), batch)
    for layers in ([2], [0, 2], -2):
        location = locate(random_model, layers=layers)
        some_BLT = exact_effects_BLT(random_model, location, batch)
        expected_BLT = every_BLT[:, location.layers]
        torch.testing.assert_close(some_BLT, expected_BLT, rtol=0, atol=1e-5 * every_BLT.abs().max().item())


@pytest.mark.parametrize("model_type", MAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_number_formats_are_close_to_float64(model_type: str, dtype: torch.dtype, warnings: list[str]):
    model = tiny_model(model_type, dtype)
    location, batch = locate(model), batch_of()
    effects_BLT = exact_effects_BLT(model, location, batch)
    exact_BLT = exact_effects_BLT(model.double(), location, batch)
    rounding = torch.finfo(dtype).eps * 16
    torch.testing.assert_close(effects_BLT, exact_BLT, rtol=0, atol=rounding * exact_BLT.abs().max().item())
    assert not warnings


def test_an_activation_inside_the_mlp_shares_runs(random_model: GPT2LMHeadModel, warnings: list[str]):
    random_model.double()
    location = locate(random_model, component="transformer.h.{layer}.mlp.act")
    batch = collate_contrasts([contrast_of(tuple(range(length))) for length in (5, 3)])
    assert_exact(exact_effects_BLT(random_model, location, batch), random_model, location, batch)
    assert not warnings


def test_a_write_that_reaches_other_tokens_within_its_block_shares_runs(warnings: list[str]):
    model = tiny_model("gpt2", torch.float64)
    location, batch = locate(model, component="transformer.h.{layer}.attn.c_attn"), batch_of()
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    assert not warnings


def test_blocks_with_more_inputs_per_row_take_whole_forward_passes(warnings: list[str]):
    model = tiny_model("gpt2", torch.float64)
    location, batch = locate(model), batch_of((5, 5))

    def give_more(_, args, kwargs):
        return args, {**kwargs, "more": batch.token_ids_BT}

    handle = model.transformer.h[0].register_forward_pre_hook(give_more, with_kwargs=True)
    effects_BLT = exact_effects_BLT(model, location, batch)
    handle.remove()
    assert_exact(effects_BLT, model, location, batch)
    assert "a block has an input besides the hidden states that differs between rows" in warnings[0]


def test_a_model_with_wrong_positions_takes_whole_forward_passes(warnings: list[str]):
    """Only the comparison with a whole forward pass detects wrong positions."""
    model = tiny_model("llama", torch.float64)
    location, batch = locate(model), batch_of()

    def positions_from_0(_, args, kwargs):
        return args, {**kwargs, "position_ids": torch.arange(kwargs["input_ids"].shape[1])[None] ** 2}

    handle = model.model.register_forward_pre_hook(positions_from_0, with_kwargs=True)
    assert_exact(exact_effects_BLT(model, location, batch), model, location, batch)
    handle.remove()
    assert "the effects differ from those of a whole forward pass" in warnings[0]


@pytest.mark.parametrize("max_tokens", [1, 2 * 3 * 9])
def test_no_more_tokens_go_through_a_layer_than_allowed(max_tokens: int):
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of()
    expected_BLT = exact_effects_BLT(model, location, batch)
    tokens: list[int] = []
    for block in model.transformer.h:
        block.ln_1.register_forward_hook(lambda _, __, output: tokens.append(output.shape[0] * output.shape[1]))
    effects_BLT = exact_effects_BLT(model, location, batch, max_tokens=max_tokens)
    assert max(tokens) <= max(max_tokens, 2 * 9)
    torch.testing.assert_close(effects_BLT, expected_BLT, rtol=0, atol=1e-5 * expected_BLT.abs().max().item())


def test_a_cell_costs_less_than_a_third_of_a_forward_pass():
    model = tiny_model("gpt2", n_layer=12)
    location, batch = locate(model), batch_of((9, 10) * 4)
    tokens: list[int] = []
    for module in location.modules:
        module.register_forward_hook(lambda _, __, output: tokens.append(output.shape[0] * output.shape[1]))
    exact_effects_BLT(model, location, batch)
    assert sum(tokens) < 0.3 * (12 * 10) * (12 * 8 * 10)


def test_leaves_the_model_as_it_was(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    location, batch = locate(random_model), collate_contrasts(sample_contrasts[:3])
    expected_BLT = exact_effects_BLT(random_model, location, batch)
    random_model.train()
    random_model.transformer.h[1].eval()
    random_model.transformer.wpe.weight.requires_grad_(False)
    modes = [module.training for module in random_model.modules()]
    trainable = [parameter.requires_grad for parameter in random_model.parameters()]

    def fail(*_):
        raise RuntimeError("out of memory")

    effects_BLT = exact_effects_BLT(random_model, location, batch)
    mean_ablation(random_model, location, [batch])
    handle = random_model.transformer.h[1].register_forward_hook(fail)
    for run in (exact_effects_BLT, lambda *args: mean_ablation(*args[:2], [batch])):
        with pytest.raises(RuntimeError, match="out of memory"):
            run(random_model, location, batch)
    handle.remove()
    torch.testing.assert_close(effects_BLT, expected_BLT, rtol=0, atol=0)
    assert [module.training for module in random_model.modules()] == modes
    assert [parameter.requires_grad for parameter in random_model.parameters()] == trainable
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in random_model.modules())
    assert not any("forward" in vars(module) for module in random_model.modules())


def test_a_trainers_modes_change_nothing(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    location, batch = locate(random_model), collate_contrasts(sample_contrasts[:3])
    expected_BLT = exact_effects_BLT(random_model, location, batch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        effects_BLT = exact_effects_BLT(random_model, location, batch.clone())
    torch.testing.assert_close(effects_BLT, expected_BLT, rtol=0, atol=0)


def test_the_last_layers_effects_are_near_its_scores(
    demo_model: PreTrainedModel, sample_contrasts: list[Contrast]
):
    """Only a norm stands between the last write and the logits, so the first-order estimate is good."""
    location, batch = locate(demo_model, layers=-1), collate_contrasts(sample_contrasts[:64])
    effects_BLT = exact_effects_BLT(demo_model, location, batch)
    scores_BLT = attribute_batch(demo_model, location, batch).scores_sum_BLT
    assert torch.corrcoef(torch.stack([effects_BLT.flatten(), scores_BLT.flatten()]))[0, 1] > 0.8


def test_rejects_unusable_inputs():
    model = tiny_model("gpt2")
    location, batch = locate(model), batch_of()
    with pytest.raises(UserError, match=r"replacement_BLTH: its shape \[5, 2, 8, 32\] is not 5 contrasts × 2 "):
        exact_effects_BLT(model, location, batch, torch.zeros(5, 2, 8, 32))
    with pytest.raises(UserError, match="^batch: token id 67 has no embedding"):
        exact_effects_BLT(model, location, collate_contrasts([contrast_of((1, 67))]))
