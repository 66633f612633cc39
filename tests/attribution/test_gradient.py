"""Gradient × activation against three oracles: a network differentiated by hand, Captum, and Inseq."""

from __future__ import annotations

import math

import pytest
import torch
from architectures import contrast_of
from captum.attr import LayerGradientXActivation
from peers import alike_in_length, inseq_scores
from toys import ToyModel
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.limits import model_limits
from lit_attr.models.location import Location, locate


def attribute(model: PreTrainedModel, contrasts: list[Contrast], **where) -> AttributionBatch:
    return attribute_batch(model, locate(model, **where), collate_contrasts(contrasts))


def toy_batch(rows: list[tuple[int, ...]]) -> ContrastBatch:
    return collate_contrasts([contrast_of(ids, true_token_id=0, false_token_id=1) for ids in rows])


def toy_location(model: ToyModel) -> Location:
    return Location(
        (0, 1), tuple(block.mlp for block in model.blocks), ("blocks.0.mlp", "blocks.1.mlp"), ("mlp", "mlp")
    )


def test_equals_a_network_differentiated_by_hand():
    """Tokens (1, 2) and (3, -1).

    Block 0 sums to (1, 2) and (4, 1), and its MLP writes (1, 4) and (16, 1): the outputs are (2, 6) and (20, 2).
    Block 1 sums to (2, 6) and (22, 8), and its MLP writes (4, 36) and (484, 64): the last position is (506, 72).
    logit_true = 506 and logit_false = 2 · 72 = 144. The gradient at block 1's last write is (1, -2), at its first
    0; at both of block 0's writes it is (1 + 2 · 22, -2 · (1 + 2 · 8)) = (45, -34).
    """
    model = ToyModel()
    scores = attribute_batch(model, toy_location(model), toy_batch([(0, 1)]))
    assert scores.logit_true_B.tolist() == [506]
    assert scores.logit_false_B.tolist() == [144]
    assert scores.rank_true_B.tolist() == [0]
    assert scores.prob_true_B.item() == pytest.approx(1.0)
    assert scores.scores_sum_BLT.tolist() == [[[45 - 136, 720 - 34], [0, 484 - 128]]]
    expected_l2 = [[[math.hypot(45, 136), math.hypot(720, 34)], [0, math.hypot(484, 128)]]]
    torch.testing.assert_close(scores.scores_l2_BLT, torch.tensor(expected_l2))


def test_rank_counts_the_tokens_above_the_true_one():
    model = ToyModel()
    batch = toy_batch([(0, 1)])
    swapped = batch._replace(true_token_ids_B=batch.false_token_ids_B, false_token_ids_B=batch.true_token_ids_B)
    scores = attribute_batch(model, toy_location(model), swapped)
    assert scores.rank_true_B.tolist() == [1]
    assert scores.logit_true_B.tolist() == [144]


def test_padding_scores_zero_and_changes_nothing():
    model = ToyModel()
    scores = attribute_batch(model, toy_location(model), toy_batch([(0, 1), (0, 1, 1)]))
    assert scores.scores_sum_BLT[0].tolist() == [[-91, 686, 0], [0, 356, 0]]
    assert scores.scores_l2_BLT[0, :, 2].tolist() == [0, 0]


def test_equals_captum_layer_by_layer(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    contrasts = sample_contrasts[:12]
    scores = attribute(random_model, contrasts)
    for row, contrast in enumerate(contrasts):

        def logit_difference(embeddings, contrast=contrast):
            logits = random_model(inputs_embeds=embeddings).logits[:, -1]
            return logits[:, contrast.true_token_id] - logits[:, contrast.false_token_id]

        embeddings = random_model.transformer.wte(torch.tensor([contrast.token_ids]))
        for layer, block in enumerate(random_model.transformer.h):
            products = LayerGradientXActivation(logit_difference, block.mlp).attribute(embeddings)[0].detach()
            ours = scores.scores_sum_BLT[row, layer, : len(contrast.tokens)]
            tolerance = 1e-4 * products.sum(-1).abs().max().item()
            torch.testing.assert_close(ours, products.sum(-1), rtol=0, atol=tolerance)
            torch.testing.assert_close(
                scores.scores_l2_BLT[row, layer, : len(contrast.tokens)],
                products.norm(dim=-1),
                rtol=0,
                atol=tolerance,
            )


@pytest.mark.filterwarnings("ignore")
def test_equals_inseq_on_the_demo_model(
    demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample_contrasts: list[Contrast]
):
    alike = alike_in_length(sample_contrasts, tokenizer)
    contrasts = alike[:: len(alike) // 32][:32]
    assert len(contrasts) == 32
    location = locate(demo_model)
    scores = attribute_batch(demo_model, location, collate_contrasts(contrasts))
    for layer, path in enumerate(location.paths):
        for row, (sums_T, norms_T) in enumerate(inseq_scores(demo_model, tokenizer, path, contrasts)):
            width = len(contrasts[row].tokens)
            assert norms_T.max() > 0
            ours_sum_T = scores.scores_sum_BLT[row, layer, :width]
            ours_l2_T = scores.scores_l2_BLT[row, layer, :width]
            torch.testing.assert_close(ours_sum_T, sums_T, rtol=0, atol=1e-4 * sums_T.abs().max().item())
            torch.testing.assert_close(ours_l2_T, norms_T, rtol=0, atol=1e-4 * norms_T.max().item())


def test_a_subset_of_layers_has_the_same_scores(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    every = attribute(random_model, sample_contrasts[:8])
    for layers in ([2], [0, 2], -2):
        some = attribute(random_model, sample_contrasts[:8], layers=layers)
        torch.testing.assert_close(some.scores_sum_BLT, every.scores_sum_BLT[:, some.layers], rtol=1e-5, atol=1e-6)


def test_a_module_inside_the_mlp_has_the_same_scores_beside_it(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    batch, inside = collate_contrasts(sample_contrasts[:4]), "transformer.h.{layer}.mlp.act"
    alone = attribute_batch(random_model, locate(random_model, component=inside), batch).scores_sum_BLT
    for components in (["mlp", inside], [inside, "mlp"]):
        beside = attribute_batch(random_model, locate(random_model, component=components), batch)
        torch.testing.assert_close(beside.scores_sum_BLT[:, components.index(inside) :: 2], alone)


def test_a_batch_has_the_scores_of_its_rows_alone(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    contrasts = sample_contrasts[::20][:16]
    assert len({len(contrast.tokens) for contrast in contrasts}) > 1
    together = attribute(random_model, contrasts)
    for row, contrast in enumerate(contrasts):
        alone = attribute(random_model, [contrast])
        width = len(contrast.tokens)
        for one, many in (
            (alone.scores_sum_BLT, together.scores_sum_BLT),
            (alone.scores_l2_BLT, together.scores_l2_BLT),
        ):
            scale = one.abs().max().item()
            torch.testing.assert_close(many[row, :, :width], one[0], rtol=0, atol=1e-5 * scale)
            assert not many[row, :, width:].any()


@pytest.mark.parametrize("component", ["mlp", "attention", "block", "transformer.h.{layer}.mlp.act"])
def test_every_component_of_the_last_layer_follows_a_finite_difference(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], component: str
):
    """Σ_h a·g is the slope of the logit difference when the write is scaled, measured in float64."""
    random_model.double()
    contrast = sample_contrasts[0]
    location = locate(random_model, layers=[1], component=component)
    batch = collate_contrasts([contrast])
    scores = attribute_batch(random_model, location, batch)

    def logit_difference(position: int, factor: float) -> float:
        def scale(_, __, output):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, position] *= factor
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = location.modules[0].register_forward_hook(scale)
        with torch.no_grad():
            logits = random_model(batch.token_ids_BT).logits[0, -1]
        handle.remove()
        return (logits[contrast.true_token_id] - logits[contrast.false_token_id]).item()

    for position in range(len(contrast.tokens)):
        slope = (logit_difference(position, 1 + 1e-5) - logit_difference(position, 1 - 1e-5)) / 2e-5
        assert scores.scores_sum_BLT[0, 0, position].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def numbers(batch: AttributionBatch) -> list[torch.Tensor]:
    found = [value for value in batch if isinstance(value, torch.Tensor)]
    assert len(found) == 7
    return found


def test_batches_join_select_and_keep_exact_effects(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    batch = attribute(random_model, sample_contrasts[:4])
    effects = ExactEffects(
        sample_contrasts[0], 7, (0, 1, 2), ("mlp",) * 3, "zero", torch.ones(3, 5), 0.0, None, None
    )
    first = batch.select([0, 1])._replace(exact=(effects,))
    second = batch.select([2, 3])._replace(exact=(effects._replace(place=8),))
    joined = first.join(second)
    assert [each.place for each in joined.exact] == [7, 8]
    assert joined.contrasts == batch.contrasts
    torch.testing.assert_close(numbers(joined), numbers(batch), rtol=0, atol=0)
    nothing = first.select([])
    assert nothing.contrasts == () and len(nothing.scores_sum_BLT) == 0
    assert nothing.exact == first.to("cpu").exact == (effects,)


def test_an_empty_batch_has_the_shape_of_its_layers(random_model: GPT2LMHeadModel):
    empty = AttributionBatch.empty(locate(random_model, layers=[0, 2]), "gradient")
    assert (empty.layers, empty.contrasts, empty.exact) == ((0, 2), (), ())
    assert empty.scores_sum_BLT.shape == (0, 2, 0) and empty.rank_true_B.dtype == torch.int64


def test_leaves_the_model_as_it_was(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    random_model.transformer.wpe.weight.requires_grad_(False)
    trainable = [parameter.requires_grad for parameter in random_model.parameters()]
    assert not all(trainable)
    result = attribute(random_model, sample_contrasts[:2])
    assert not any(tensor.requires_grad for tensor in numbers(result))
    assert [parameter.requires_grad for parameter in random_model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in random_model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in random_model.modules())


def test_leaves_the_model_as_it_was_after_an_error(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    def fail(*_):
        raise RuntimeError("out of memory")

    handle = random_model.transformer.h[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        attribute(random_model, sample_contrasts[:2])
    handle.remove()
    assert all(parameter.requires_grad for parameter in random_model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in random_model.modules())


def test_works_in_inference_mode(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    expected = attribute(random_model, sample_contrasts[:4])
    with torch.inference_mode():
        result = attribute(random_model, sample_contrasts[:4])
    torch.testing.assert_close(result[4:], expected[4:], rtol=0, atol=0)


def test_computes_logits_at_one_position_only(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]):
    shapes = []
    location = locate(random_model)
    random_model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
    attribute_batch(random_model, location, collate_contrasts(sample_contrasts[:5]))
    assert shapes == [(5, 1, random_model.config.vocab_size)]


def test_one_forward_and_one_backward_for_all_layers(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], monkeypatch: pytest.MonkeyPatch
):
    calls = {"forward": 0, "backward": 0}
    location = locate(random_model)
    random_model.transformer.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        calls["backward"] += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    attribute_batch(random_model, location, collate_contrasts(sample_contrasts[:5]))
    assert calls == {"forward": 1, "backward": 1}


def test_rejects_tokens_without_an_embedding():
    model = ToyModel()
    location = toy_location(model)._replace(limits=model_limits(model))
    with pytest.raises(UserError, match=r"^batch: token id 7 has no embedding in this model of 2 tokens"):
        attribute_batch(model, location, toy_batch([(0, 7)]))


def test_rejects_a_context_longer_than_the_models_positions(random_model: GPT2LMHeadModel):
    with pytest.raises(UserError, match=r"^batch: the fact 0 has 65 tokens, and this model has positions for 64"):
        attribute_batch(random_model, locate(random_model), toy_batch([(0,) * 65]))
