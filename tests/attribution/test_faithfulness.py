"""Faithfulness curves against forward passes of each row by itself, with independent hooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from architectures import CONFIGS, contrast_of, random_contrasts, tiny_model
from torch import Tensor, nn
from toys import ToyModel
from transformers import GPT2LMHeadModel, PreTrainedModel

from lit_attr.attribution import faithfulness
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.faithfulness import (
    PERCENT,
    RANKINGS,
    Curves,
    faithfulness_curves,
    random_scores_BLT,
)
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location, locate

LENGTHS = (5, 3, 7, 1)


def batch_of(lengths: tuple[int, ...] = LENGTHS) -> ContrastBatch:
    return collate_contrasts(random_contrasts(lengths))


def drawn(batch: ContrastBatch, layers: int, seed: int = 2) -> Tensor:
    """Random scores at real tokens, and the largest scores at padding."""
    scores_BLT = torch.randn(
        len(batch.contrasts), layers, batch.token_ids_BT.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    for row, contrast in enumerate(batch.contrasts):
        scores_BLT[row, :, len(contrast.token_ids) :] = 1e9
    return scores_BLT


@torch.no_grad()
def difference_without(
    model: PreTrainedModel, location: Location, contrast: Contrast, removed: set[tuple[int, int]]
) -> float:
    """The logit difference of a row by itself, with the cells in `removed` set to zero."""
    length = len(contrast.token_ids)
    handles = []
    for place, module in enumerate(location.modules):

        def remove(_, __, output, place=place):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            for token in range(length):
                if (place, token) in removed:
                    hidden.view(length, -1)[token] = 0
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handles.append(module.register_forward_hook(remove))
    logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).item()


def assert_faithful(
    curves: Curves, model: PreTrainedModel, location: Location, batch: ContrastBatch, rankings: Sequence[Tensor]
) -> None:
    for row, contrast in enumerate(batch.contrasts):
        cells = [(place, at) for place in range(len(location.layers)) for at in range(len(contrast.token_ids))]
        clean = difference_without(model, location, contrast, set())
        assert curves.logit_diff_B[row].item() == pytest.approx(clean, rel=1e-5)
        for which, scores_BLT in enumerate(rankings):
            order = sorted(cells, key=lambda cell: (-scores_BLT[row, cell[0], cell[1]].item(), cell))
            tops = [set(order[: math.ceil(Fraction(percent * len(cells), 100))]) for percent in PERCENT]
            without = [clean - difference_without(model, location, contrast, top) for top in tops]
            with_only = [clean - difference_without(model, location, contrast, {*cells} - top) for top in tops]
            size = max(map(abs, without + with_only))
            assert size > 1e-3
            assert curves.comprehensiveness_BRP[row, which].tolist() == pytest.approx(without, abs=1e-5 * size)
            assert curves.sufficiency_BRP[row, which].tolist() == pytest.approx(with_only, abs=1e-5 * size)


def test_equals_a_network_computed_by_hand():
    """The toy of test_exact_effects: logit_true − logit_false is 506 − 144 = 362, from (4, 1) at the last token.

    Of four cells the top one counts up to 20%, and two at 50%. Block 0's write at the last token is the first:
    without it 362 − 432 is left. Without block 1's as well the stream ends at (2, 6) + (4, 1): 6 − 14 = −8. With
    block 0's alone it ends at (1, 2) + (20, 2): 21 − 8 = 13. With block 1's as well at (21, 4) + (441, 16):
    462 − 40 = 422. The second row is the first token alone, (1, 2), and ends at 6 − 84 = −78. With either block's
    write alone it ends at (2, 6): 2 − 12 = −10.
    """
    model = ToyModel()
    location = Location(
        (0, 1), tuple(block.mlp for block in model.blocks), ("blocks.0.mlp", "blocks.1.mlp"), ("mlp", "mlp")
    )
    batch = collate_contrasts([contrast_of(ids, true_token_id=0, false_token_id=1) for ids in ((0, 1), (0,))])
    scores_BLT = torch.tensor([[[-60.0, 432.0], [0.0, 356.0]], [[2.0, 9e9], [1.0, 9e9]]])
    curves = faithfulness_curves(model, location, batch, [scores_BLT])
    assert curves.logit_diff_B.tolist() == [362, -78]
    assert curves.comprehensiveness_BRP[:, 0].tolist() == [[432] * 5 + [362 + 8], [-78 + 10] * 6]
    assert curves.sufficiency_BRP[:, 0].tolist() == [[362 - 13] * 5 + [362 - 422], [-78 + 10] * 6]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_architecture_equals_single_rows(model_type: str):
    # XGLM assigns the smallest float64 to a float32 tensor.
    model = tiny_model(model_type, torch.float32 if model_type == "xglm" else torch.float64)
    location, batch = locate(model), batch_of()
    rankings = [drawn(batch, 2, seed) for seed in (2, 3)]
    assert_faithful(faithfulness_curves(model, location, batch, rankings), model, location, batch, rankings)


@pytest.mark.parametrize("component", ["attention", "block"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "gemma2", "opt", "mixtral"])
def test_every_component_equals_single_rows(model_type: str, component: str):
    model = tiny_model(model_type, torch.float64)
    location, batch = locate(model, component=component), batch_of()
    rankings = [drawn(batch, 2)]
    assert_faithful(faithfulness_curves(model, location, batch, rankings), model, location, batch, rankings)


def test_float32_is_close_to_float64():
    """And the curves have the dtype of the logits."""
    model, batch = tiny_model("llama"), batch_of()
    rankings = [drawn(batch, 2)]
    curves = faithfulness_curves(model, locate(model), batch, rankings)
    exact = faithfulness_curves(model.double(), locate(model), batch, rankings)
    for values, exact_values in zip(curves, exact, strict=True):
        assert (values.dtype, exact_values.dtype) == (torch.float32, torch.float64)
        torch.testing.assert_close(values.double(), exact_values, rtol=0, atol=1e-5 * exact_values.abs().max())


@pytest.mark.parametrize(
    "length, counts",
    [(1, [1, 1, 1, 1, 1, 2]), (3, [1, 1, 1, 1, 2, 5]), (5, [1, 1, 1, 2, 3, 8]), (34, [2, 3, 6, 11, 21, 51])],
)
def test_percentages_are_rounded_up(random_model: GPT2LMHeadModel, length: int, counts: list[int]):
    """Of 3, 9, 15 and 102 cells, counted as zero writes from outside."""
    location = locate(random_model)
    zeros: list[Tensor] = []
    for block in random_model.transformer.h:
        # Wrapped around the changed module, so that this hook runs after the one under test.
        block.mlp = nn.Sequential(block.mlp)
        block.mlp.register_forward_hook(lambda _, __, output: zeros.append((output == 0).all(-1).sum(-1)))
    batch = collate_contrasts([contrast_of(tuple(range(length)))])
    faithfulness_curves(random_model, location, batch, [drawn(batch, 3)])
    removed_V = torch.stack(zeros).sum(0).tolist()
    assert removed_V == [0, *counts, *(3 * length - count for count in counts)]


def test_ties_go_to_the_lower_layer_and_the_earlier_token(random_model: GPT2LMHeadModel):
    location = locate(random_model)
    batch = collate_contrasts([contrast_of(tuple(range(length))) for length in (7, 4)])
    alike, falling = torch.zeros(2, 3, 7), -torch.arange(21.0).reshape(1, 3, 7).expand(2, -1, -1)
    curves = faithfulness_curves(random_model, location, batch, [alike, falling])
    for curve_BRP in curves[1:]:
        assert torch.equal(curve_BRP[:, 0], curve_BRP[:, 1])


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "mixtral"])
def test_the_curves_of_a_row_do_not_depend_on_its_batch(model_type: str):
    """To the last bit: each row goes through the model alone, without padding."""
    model, batch = tiny_model(model_type), batch_of()
    location, scores_BLT = locate(model), drawn(batch, 2)
    together = faithfulness_curves(model, location, batch, [scores_BLT])
    for row, contrast in enumerate(batch.contrasts):
        scores_1LT = scores_BLT[[row], :, : len(contrast.token_ids)]
        alone = faithfulness_curves(model, location, collate_contrasts([contrast]), [scores_1LT])
        # Scores may come from a wider batch.
        wider_1LT = nn.functional.pad(scores_1LT, (0, 9), value=1e9)
        wide = faithfulness_curves(model, location, collate_contrasts([contrast]), [wider_1LT])
        for values, values_alone, values_wide in zip(together, alone, wide, strict=True):
            assert torch.equal(values[[row]], values_alone)
            assert torch.equal(values_alone, values_wide)


def test_no_more_tokens_go_through_a_layer_than_allowed(monkeypatch: pytest.MonkeyPatch):
    model, batch = tiny_model("gpt2", torch.float64), batch_of()
    location, scores_BLT = locate(model), drawn(batch, 2)
    expected = faithfulness_curves(model, location, batch, [scores_BLT])
    tokens: list[int] = []
    model.transformer.h[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0][..., 0].numel()))
    for most in (1, 20):
        monkeypatch.setattr(faithfulness, "MAX_TOKENS", most)
        found = faithfulness_curves(model, location, batch, [scores_BLT])
        assert max(tokens) == max(most, max(LENGTHS))
        for values, expected_values in zip(found, expected, strict=True):
            torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-9)


def test_leaves_the_model_as_it_was_and_ignores_modes(random_model: GPT2LMHeadModel):
    location, batch = locate(random_model), collate_contrasts([contrast_of((1, 2, 3))])
    rankings = [drawn(batch, 3)]
    expected = faithfulness_curves(random_model, location, batch, rankings)
    random_model.train()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = faithfulness_curves(random_model, location, batch.clone(), rankings)
    for values, expected_values in zip(found, expected, strict=True):
        assert torch.equal(values, expected_values)
        assert not values.is_inference() and not values.requires_grad
    assert all(module.training for module in random_model.modules())

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = random_model.transformer.h[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        faithfulness_curves(random_model, location, batch, rankings)
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in random_model.modules())
    assert not any("forward" in vars(module) for module in random_model.modules())


def test_rejects_unusable_inputs():
    model, batch = tiny_model("gpt2"), batch_of()
    location = locate(model)
    for shape in ((4, 3, 7), (3, 2, 7), (4, 2, 6)):
        with pytest.raises(UserError, match=r"^rankings: the shape .* is not 4 contrasts × 2 layers × 7 tokens"):
            faithfulness_curves(model, location, batch, [torch.zeros(4, 2, 7), torch.zeros(shape)])
    with pytest.raises(UserError, match="^batch: token id 67 has no embedding"):
        faithfulness_curves(model, location, collate_contrasts([contrast_of((1, 67))]), [torch.zeros(1, 2, 2)])


def test_random_scores_are_determined_by_the_contrast(sample_contrasts: list[Contrast]):
    """Independent of batch and process; other facts and steps have other scores."""
    contrasts = [sample_contrasts[place] for place in (0, 5, 100, 200)]
    together_BLT = random_scores_BLT(contrasts, 8)
    global_state = torch.get_rng_state()
    for row, contrast in enumerate(contrasts):
        alone_LT = random_scores_BLT([contrast], 8)[0]
        assert torch.equal(together_BLT[row, :, : alone_LT.shape[1]], alone_LT)
        assert len(alone_LT.unique()) == alone_LT.numel()
    assert torch.equal(torch.get_rng_state(), global_state)
    first = contrasts[0]
    others = [first._replace(step=1), first._replace(fact=first.fact._replace(id=str(first.fact.id)))]
    orders = {tuple(random_scores_BLT([each], 8).flatten().argsort().tolist()) for each in (first, *others)}
    assert len(orders) == 3
    # Each cell is first about equally often.
    short = [first._replace(step=step, token_ids=first.token_ids[:2]) for step in range(1000)]
    firsts = random_scores_BLT(short, 2).flatten(1).argmax(1).bincount(minlength=4)
    assert firsts.min() > 200


def test_exact_effects_rank_better_than_chance(demo_model: PreTrainedModel, sample_contrasts: list[Contrast]):
    """So do the scores of the demo model, which are close to the exact effects."""
    batch, location = collate_contrasts(sample_contrasts[::30]), locate(demo_model)
    scores_BLT = attribute_batch(demo_model, location, batch).scores_sum_BLT
    effects_BLT = exact_effects_BLT(demo_model, location, batch)
    random_BLT = random_scores_BLT(batch.contrasts, len(location.layers))
    curves = faithfulness_curves(demo_model, location, batch, [scores_BLT, effects_BLT, random_BLT])
    # Of up to 100 cells, 1% is one cell, and removing that one has its exact effect.
    few = [row for row, contrast in enumerate(batch.contrasts) if len(contrast.token_ids) * 8 <= 100]
    assert len(few) > 10
    largest_B = effects_BLT.flatten(1).max(1).values
    torch.testing.assert_close(curves.comprehensiveness_BRP[few, 1, 0], largest_B[few], rtol=0, atol=1e-4)
    removed, kept = (
        dict(zip(RANKINGS, curve_BRP.mean((0, 2)).tolist(), strict=True))
        for curve_BRP in (curves.comprehensiveness_BRP, curves.sufficiency_BRP)
    )
    logit_diff = curves.logit_diff_B.mean().item()
    for ranking in ("scores", "exact"):
        assert removed[ranking] - removed["random"] > 0.1 * logit_diff
        assert kept["random"] - kept[ranking] > 0.1 * logit_diff
    assert removed["exact"] > removed["scores"]
    assert kept["exact"] < kept["scores"]
