"""The neurons with the largest scores, against plain hooks and finite differences.

Axes: L layers, T tokens of one contrast, I hidden units, K neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from architectures import random_contrasts, tiny_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_attr.attribution.catalogue import RuleName, find_rule
from lit_attr.attribution.gradient import GRADIENT, Rule, attribute_batch
from lit_attr.attribution.neurons import NeuronScores, find_neurons, largest_places_BK
from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.loading import Quantization, load_model
from lit_attr.models.location import Location, locate

# The down projection in a block, from each architecture's source code.
DOWN_PROJECTIONS = {
    "gpt2": "mlp.c_proj",
    "gpt_neo": "mlp.c_proj",
    "gptj": "mlp.fc_out",
    "gpt_neox": "mlp.dense_4h_to_h",
    "opt": "fc2",
    "bloom": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
    "mpt": "ffn.down_proj",
    "llama": "mlp.down_proj",
    "mistral": "mlp.down_proj",
    "qwen2": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
    "gemma": "mlp.down_proj",
    "phi": "mlp.fc2",
    "phi3": "mlp.down_proj",
    "stablelm": "mlp.down_proj",
    "starcoder2": "mlp.c_proj",
    "granite": "mlp.down_proj",
    "cohere": "mlp.down_proj",
    "codegen": "mlp.fc_out",
    "gpt_bigcode": "mlp.c_proj",
    "xglm": "fc2",
    "biogpt": "fc2",
}
NORMED = {"gemma2": "mlp.down_proj", "gemma3_text": "mlp.down_proj", "olmo2": "mlp.down_proj"}
EVERY = 10_000


def with_neurons(
    model: PreTrainedModel,
    contrasts: list[Contrast],
    count: int = EVERY,
    rule: Rule = GRADIENT,
    location: Location | None = None,
) -> AttributionBatch:
    location = location or locate(model)
    top = find_neurons(model, location, count, rule=rule)
    return attribute_batch(model, location, collate_contrasts(contrasts), rule=rule, top_neurons=top)


def neurons_of(batch: AttributionBatch) -> NeuronScores:
    assert batch.neurons is not None
    return batch.neurons


def projections_of(model: PreTrainedModel, path: str) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(f".{path}")]


def by_hooks(
    model: PreTrainedModel, contrast: Contrast, projections: list[nn.Module], rule: Rule = GRADIENT
) -> tuple[Tensor, Tensor]:
    """Scores of all neurons [L, T, I] and of the projections' biases [L, T], by plain hooks and `.backward()`."""
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        args[0].retain_grad()
        output.retain_grad()
        kept[module] = args[0], output

    with ExitStack() as stack:
        stack.enter_context(rule.held())
        for module in projections:
            stack.callback(module.register_forward_hook(keep).remove)
        logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1].float()
        (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).backward()
    model.zero_grad()
    tokens = len(contrast.token_ids)
    scores, biases = [], []
    for module in projections:
        units, output = kept[module]
        assert units.grad is not None and output.grad is not None
        scores.append((units * units.grad).detach().reshape(tokens, -1))
        bias = getattr(module, "bias", None)
        biases.append((output.grad.reshape(tokens, -1) * (0 if bias is None else bias)).sum(-1).detach())
    return torch.stack(scores), torch.stack(biases)


def sums_LT(neurons: NeuronScores, row: int, shape: tuple[int, ...]) -> Tensor:
    layer_K, token_K, _, score_K = (each_BK[row] for each_BK in neurons)
    listed_K = layer_K >= 0
    total_LT = torch.zeros(shape, dtype=score_K.dtype)
    return total_LT.index_put((layer_K[listed_K], token_K[listed_K]), score_K[listed_K], accumulate=True)


def assert_largest(neurons: NeuronScores, row: int, scores_LTI: Tensor) -> None:
    """Compares the neurons of a row with all scores, sorted."""
    ranked = sorted(
        (-abs(score), *place)
        for place, score in zip(
            torch.cartesian_prod(*map(torch.arange, scores_LTI.shape)).tolist(),
            scores_LTI.flatten().tolist(),
            strict=True,
        )
        if score
    )[: neurons.score_BK.shape[1]]
    count = len(ranked)
    found = torch.stack(neurons[:3], 2)[row]
    assert found[:count].tolist() == [[*place] for _, *place in ranked]
    assert (found[count:] == -1).all() and not neurons.score_BK[row, count:].any()
    wanted_K = torch.tensor([scores_LTI[tuple(place)] for _, *place in ranked])
    size = wanted_K.abs().max().item()
    torch.testing.assert_close(neurons.score_BK[row, :count], wanted_K, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("model_type", DOWN_PROJECTIONS)
def test_neurons_and_bias_add_up_to_the_mlps_score(model_type: str):
    model = tiny_model(model_type)
    (contrast,) = random_contrasts((6,))
    batch = with_neurons(model, [contrast])
    _, bias_LT = by_hooks(model, contrast, projections_of(model, DOWN_PROJECTIONS[model_type]))
    scores_LT = batch.scores_sum_BLT[0]
    size = scores_LT.abs().max().item()
    assert size > 1e-3
    found_LT = sums_LT(neurons_of(batch), 0, tuple(scores_LT.shape)) + bias_LT
    torch.testing.assert_close(found_LT, scores_LT, rtol=0, atol=1e-5 * size)


@pytest.mark.parametrize("rule_name", ["frozen-norm", "linearised"])
@pytest.mark.parametrize("model_type", ["gpt2", "bloom", "llama", "stablelm", *NORMED])
def test_they_add_up_under_rules_that_change_the_backward_pass(model_type: str, rule_name: RuleName):
    model = tiny_model(model_type)
    (contrast,) = random_contrasts((6,))
    rule = find_rule(model, locate(model), rule_name)
    batch = with_neurons(model, [contrast], rule=rule)
    path = (DOWN_PROJECTIONS | NORMED)[model_type]
    _, bias_LT = by_hooks(model, contrast, projections_of(model, path), rule)
    scores_LT = batch.scores_sum_BLT[0]
    found_LT = sums_LT(neurons_of(batch), 0, tuple(scores_LT.shape)) + bias_LT
    torch.testing.assert_close(found_LT, scores_LT, rtol=0, atol=1e-5 * scores_LT.abs().max().item())


@pytest.mark.parametrize("model_type", DOWN_PROJECTIONS)
def test_the_top_neurons_are_those_of_plain_hooks(model_type: str):
    model = tiny_model(model_type)
    contrasts = random_contrasts((7, 3))
    neurons = neurons_of(with_neurons(model, contrasts, 20))
    for row, contrast in enumerate(contrasts):
        scores_LTI, _ = by_hooks(model, contrast, projections_of(model, DOWN_PROJECTIONS[model_type]))
        assert_largest(neurons, row, scores_LTI)


@torch.no_grad()
def difference(model: PreTrainedModel, contrast: Contrast) -> float:
    logits_V = model(torch.tensor([contrast.token_ids]), use_cache=False).logits[0, -1]
    return (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).item()


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "stablelm"])
def test_a_score_is_the_slope_as_the_neuron_goes_to_zero(model_type: str):
    """In float64: to first order, without the neuron the logit difference is smaller by the neuron's score."""
    model = tiny_model(model_type, torch.float64)
    (contrast,) = random_contrasts((6,))
    layer_K, token_K, neuron_K, score_K = (each[0] for each in neurons_of(with_neurons(model, [contrast], 12)))
    assert score_K.dtype == torch.float64 and len({*layer_K.tolist()}) == 2
    projections = projections_of(model, DOWN_PROJECTIONS[model_type])
    for layer, token, neuron, score in zip(
        *(each.tolist() for each in (layer_K, token_K, neuron_K, score_K)), strict=True
    ):

        def scaled(factor: float, token: int = token, neuron: int = neuron) -> Callable[..., tuple[Tensor]]:
            def change(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
                units = args[0].clone()
                units[0, token, neuron] *= factor
                return (units,)

            return change

        ends = []
        for factor in (1 - 1e-4, 1 + 1e-4):
            handle = projections[layer].register_forward_pre_hook(scaled(factor))
            ends.append(difference(model, contrast))
            handle.remove()
        assert (ends[1] - ends[0]) / 2e-4 == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "bloom", "llama", "gptj"])
def test_a_batch_has_the_neurons_of_its_rows_alone(model_type: str):
    model = tiny_model(model_type)
    contrasts = random_contrasts((9, 1, 6, 3))
    together = neurons_of(with_neurons(model, contrasts, 20))
    for row, contrast in enumerate(contrasts):
        alone = neurons_of(with_neurons(model, [contrast], 20))
        for many_BK, one_BK in zip(together[:3], alone[:3], strict=True):
            assert many_BK[row].tolist() == one_BK[0].tolist()
        assert together.token_BK[row].max() < len(contrast.token_ids)
        torch.testing.assert_close(together.score_BK[row], alone.score_BK[0], rtol=1e-5, atol=1e-6)


def test_rows_of_other_rotary_frequencies_have_the_neurons_of_their_own_pass():
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", rope_parameters=scaling, max_position_embeddings=8)
    contrasts = random_contrasts((12, 3))
    together = with_neurons(model, contrasts, 9)
    assert neurons_of(together).score_BK.shape == (2, 9)
    for row, contrast in enumerate(contrasts):
        alone = neurons_of(with_neurons(model, [contrast], 9))
        assert neurons_of(together).neuron_BK[row].tolist() == alone.neuron_BK[0].tolist()


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "llama"])
def test_the_top_mlp_may_run_at_last_tokens_alone(model_type: str):
    model = tiny_model(model_type)
    location = locate(model)
    assert location.top_mlp is not None
    contrasts = random_contrasts((7, 4))
    short, whole = (
        neurons_of(with_neurons(model, contrasts, EVERY, location=each))
        for each in (location, location._replace(top_mlp=None))
    )
    for row, contrast in enumerate(contrasts):
        assert {*short.token_BK[row][short.layer_BK[row] == 1].tolist()} == {len(contrast.token_ids) - 1}
        shape = (2, len(contrast.token_ids))
        torch.testing.assert_close(sums_LT(short, row, shape), sums_LT(whole, row, shape), rtol=1e-5, atol=1e-6)


def test_some_layers_have_their_own_neurons_by_their_own_index():
    model = tiny_model("gpt2")
    (contrast,) = random_contrasts((6,))
    upper = neurons_of(with_neurons(model, [contrast], 20, location=locate(model, layers=[1])))
    assert {*upper.layer_BK[0].tolist()} == {1}
    every = neurons_of(with_neurons(model, [contrast]))
    wanted_K = every.neuron_BK[0][every.layer_BK[0] == 1][:20]
    assert upper.neuron_BK[0].tolist() == wanted_K.tolist()


def test_fewer_neurons_than_asked_for_leave_places_empty():
    tiny = tiny_model("opt")
    (contrast,) = random_contrasts((2,))
    scores_LTI, _ = by_hooks(tiny, contrast, projections_of(tiny, "fc2"))
    # A hidden unit after a ReLU is often 0.
    assert 0 < (scores_LTI == 0).sum() < scores_LTI.numel()
    assert_largest(neurons_of(with_neurons(tiny, [contrast], 300)), 0, scores_LTI)


def test_equal_neurons_are_in_the_order_of_their_indices():
    model = tiny_model("gpt2")
    block = model.transformer.h[1].mlp
    with torch.no_grad():
        # Copies of one neuron.
        block.c_fc.weight[:, 96:] = block.c_fc.weight[:, [16]]
        block.c_fc.bias[96:] = block.c_fc.bias[16]
        block.c_proj.weight[96:] = block.c_proj.weight[[16]]
    neurons = neurons_of(with_neurons(model, random_contrasts((5,)), location=locate(model, layers=[1])))
    listed = neurons.neuron_BK[0].tolist()
    start = listed.index(96)
    assert listed[start - 1 : start + 32] == [16, *range(96, 128)]
    assert len({*neurons.score_BK[0, start - 1 : start + 32].tolist()}) == 1


@pytest.mark.parametrize(("numbers", "count"), [(5, 3), (5, 9), (32, 32), (1000, 20), (1000, 999)])
def test_the_largest_are_those_of_a_stable_sort(numbers: int, count: int):
    generator = torch.Generator().manual_seed(numbers)
    # Many of them are equal.
    values_BP = torch.randint(-9, 10, (3, numbers), generator=generator).float()
    found = largest_places_BK(values_BP, count).tolist()
    for places, values in zip(found, values_BP.tolist(), strict=True):
        assert places == sorted(range(numbers), key=lambda place: -abs(values[place]))[:count]


def test_an_adapter_on_the_projection_is_part_of_it():
    model = tiny_model("llama")
    config = LoraConfig(r=2, target_modules=["down_proj", "up_proj"], init_lora_weights=False, lora_alpha=8)
    adapted = get_peft_model(model, config).eval()
    (contrast,) = random_contrasts((6,))
    location = locate(adapted)
    top = find_neurons(adapted, location, 20)
    wrappers = [module for name, module in adapted.named_modules() if name.endswith(".mlp.down_proj")]
    assert [*top.projections] == wrappers and not isinstance(wrappers[0], nn.Linear)
    batch = attribute_batch(adapted, location, collate_contrasts([contrast]), top_neurons=top)
    scores_LTI, _ = by_hooks(adapted, contrast, wrappers)
    assert_largest(neurons_of(batch), 0, scores_LTI)


def test_an_adapter_that_writes_nothing_yet_is_part_of_the_projection():
    model = tiny_model("llama")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"])).eval()
    wrappers = [module for name, module in adapted.named_modules() if name.endswith(".mlp.down_proj")]
    assert [*find_neurons(adapted, locate(adapted), 20).projections] == wrappers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_have_float32_scores(dtype: torch.dtype):
    contrasts = random_contrasts((6,))
    neurons = neurons_of(with_neurons(tiny_model("llama", dtype), contrasts, 5))
    expected = neurons_of(with_neurons(tiny_model("llama"), contrasts, 5))
    assert neurons.score_BK.dtype == torch.float32
    assert neurons.neuron_BK[0, 0] == expected.neuron_BK[0, 0]
    torch.testing.assert_close(neurons.score_BK[:, 0], expected.score_BK[:, 0], rtol=0.1, atol=0)


def test_batches_with_neurons_join_select_and_pad():
    model = tiny_model("gpt2")
    batch = with_neurons(model, random_contrasts((5, 3, 4)), 7)
    joined = batch.select([2, 0]).join(batch.select([1]).padded(5)).to("cpu")
    for found_BK, every_BK in zip(neurons_of(joined), neurons_of(batch), strict=True):
        assert torch.equal(found_BK, every_BK[[2, 0, 1]])
    assert batch.is_finite_B().tolist() == [True] * 3
    neurons_of(batch).score_BK[1, 2] = torch.inf
    assert batch.is_finite_B().tolist() == [True, False, True]


def test_scores_are_those_of_a_pass_without_neurons():
    model = tiny_model("llama")
    contrasts = random_contrasts((6, 4))
    location = locate(model)
    plain = attribute_batch(model, location, collate_contrasts(contrasts))
    assert plain.neurons is None
    torch.testing.assert_close(with_neurons(model, contrasts, 3)[4:11], plain[4:11], rtol=1e-6, atol=1e-7)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


def test_hidden_units_of_a_gated_mlp_are_gate_times_up():
    """Each with the gradient at the projection's output, taken back through its weight."""
    model = tiny_model("llama")
    (contrast,) = random_contrasts((5,))
    mlp = model.model.layers[1].mlp
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        kept.extend([args[0], output])

    handle = mlp.register_forward_hook(keep)
    logits_V = model(torch.tensor([contrast.token_ids])).logits[0, -1]
    (logits_V[contrast.true_token_id] - logits_V[contrast.false_token_id]).backward()
    handle.remove()
    given, written = kept
    assert written.grad is not None
    with torch.no_grad():
        units_TI = (nn.functional.silu(mlp.gate_proj(given)) * mlp.up_proj(given))[0]
        scores_LTI = (units_TI * (written.grad[0] @ mlp.down_proj.weight))[None]
    neurons = neurons_of(with_neurons(model, [contrast], 20, location=locate(model, layers=[1])))
    assert_largest(neurons._replace(layer_BK=neurons.layer_BK - 1), 0, scores_LTI)


def test_neurons_before_a_norm_add_up_to_nothing_by_the_gradient():
    model = tiny_model("gemma2", rms_norm_eps=1e-12)
    (contrast,) = random_contrasts((6,))
    scores_LTI, _ = by_hooks(model, contrast, projections_of(model, "mlp.down_proj"))
    batch = attribute_batch(model, locate(model), collate_contrasts([contrast]))
    assert scores_LTI.sum(-1).abs().max() < 1e-4 * batch.scores_sum_BLT.abs().max()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantised_projections_have_neurons_where_they_add_up(quantization: Quantization, tmp_path: Path):
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    model = load_model(tmp_path, quantization=quantization)
    if quantization == "8bit":
        with pytest.raises(ArgumentError, match=r"^top_neurons: the neurons of layer 0 do not add up .*bfloat16$"):
            find_neurons(model, locate(model), 20)
        return
    batch = with_neurons(model, random_contrasts((6,)))
    found_LT = sums_LT(neurons_of(batch), 0, (2, 6))
    size = batch.scores_sum_BLT.abs().max().item()
    torch.testing.assert_close(found_LT, batch.scores_sum_BLT[0], rtol=0, atol=1e-5 * size)
