"""Rows of a batch score as they do alone where the width of a batch decides rotary frequencies."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial

import pytest
import torch
from architectures import CONFIGS, random_contrasts, tiny_model
from rotary import POSITIONS, SWITCH, parameters_of, rotary_model, rotary_model_types, types_that_depend_on_width
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.ablation import mean_ablation
from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.hooks import outputs_changed
from lit_attr.models.limits import limits_of, model_limits
from lit_attr.models.location import locate
from lit_attr.notebook import attribute

# On both sides of the switch at 16 tokens, and on it. The shorter ones come after the longer ones as well.
LENGTHS = (5, 14, 30, 18, 16, 17, 18)


def dependent_model(rope_type: str) -> PreTrainedModel:
    positions = SWITCH if rope_type == "dynamic" else POSITIONS
    return tiny_model("llama", rope_parameters=parameters_of(rope_type, 4), max_position_embeddings=positions)


def plain_difference(model: PreTrainedModel, contrast: Contrast, padding: int = 0) -> float:
    """The logit difference by a copy of the model that has seen nothing else."""
    token_ids = torch.tensor([[*contrast.token_ids, *[1] * padding]])
    with torch.no_grad():
        logits = deepcopy(model)(input_ids=token_ids, use_cache=False).logits[0, len(contrast.token_ids) - 1]
    return float(logits[contrast.true_token_id] - logits[contrast.false_token_id])


def test_two_types_of_transformers_depend_on_width():
    """The test below covers whatever the registry has."""
    assert types_that_depend_on_width() == ["dynamic", "longrope"]


@pytest.mark.parametrize("rope_type", types_that_depend_on_width())
def test_rows_of_every_rotary_architecture_score_as_alone(rope_type: str):
    contrasts = random_contrasts((5, 14, 18))
    affected = 0
    for model_type in rotary_model_types():
        model = rotary_model(model_type, rope_type)
        if model is None or "hrm" in model_type:  # two stacks of blocks
            continue
        alone = [plain_difference(model, contrast) for contrast in contrasts]
        if max(abs(plain_difference(model, contrasts[1], padding=4) - alone[1]), 0) < 1e-3:
            continue  # no attention, or too few dimensions for its frequencies to change
        affected += 1
        assert model_limits(model).switches == (SWITCH,), model_type
        scored = attribute_batch(model, locate(model, component="block"), collate_contrasts(contrasts))
        found = (scored.logit_true_B - scored.logit_false_B).tolist()
        assert found == pytest.approx(alone, abs=1e-4), model_type
    assert affected > 60


@pytest.mark.parametrize("rope_type", types_that_depend_on_width())
def test_scores_and_exact_effects_are_those_of_rows_alone(rope_type: str):
    model = dependent_model(rope_type)
    location = locate(model)
    contrasts = random_contrasts(LENGTHS)
    batch = collate_contrasts(contrasts)
    scored = attribute_batch(model, location, batch)
    effects_BLT = exact_effects_BLT(model, location, batch)
    assert scored.scores_sum_BLT.shape == effects_BLT.shape == (len(LENGTHS), 2, max(LENGTHS))
    assert scored.contrasts == tuple(contrasts)
    for row, contrast in enumerate(contrasts):
        fresh = dependent_model(rope_type)
        alone, width = collate_contrasts([contrast]), len(contrast.token_ids)
        expected = attribute_batch(fresh, locate(fresh), alone)
        for part, whole in zip(expected[4:11], scored[4:11], strict=True):
            found = whole[[row]][:, :, :width] if whole.dim() == 3 else whole[[row]]
            torch.testing.assert_close(found, part, atol=1e-5, rtol=1e-4)
        assert not scored.scores_sum_BLT[row, :, width:].any()
        expected_LT = exact_effects_BLT(fresh, locate(fresh), alone)[0]
        torch.testing.assert_close(effects_BLT[row, :, :width], expected_LT, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rope_type", types_that_depend_on_width())
def test_rows_padded_across_the_switch_score_as_alone(rope_type: str):
    """As by a loader that pads to a multiple of some width."""
    model = dependent_model(rope_type)
    contrasts = random_contrasts((5, 14))
    batch = collate_contrasts(contrasts)
    wide = batch._replace(token_ids_BT=nn.functional.pad(batch.token_ids_BT, (0, 20), value=1))
    scored = attribute_batch(model, locate(model), wide)
    assert scored.scores_sum_BLT.shape == (2, 2, 34)
    found = (scored.logit_true_B - scored.logit_false_B).tolist()
    assert found == pytest.approx([plain_difference(model, each) for each in contrasts], abs=1e-5)


@pytest.mark.parametrize("rope_type", types_that_depend_on_width())
def test_mean_writes_are_those_of_rows_alone(rope_type: str):
    model = dependent_model(rope_type)
    location = locate(model)
    contrasts = random_contrasts((5, 14, 30))
    together = mean_ablation(model, location, [collate_contrasts(contrasts)])
    alone = mean_ablation(model, location, [collate_contrasts([each]) for each in contrasts])
    torch.testing.assert_close(together.mean_LH, alone.mean_LH)
    torch.testing.assert_close(together.mean_at_0_LH, alone.mean_at_0_LH)


def test_a_model_keeps_its_rotary_state():
    model = dependent_model("dynamic")
    long = torch.ones(1, 40, dtype=torch.int64)
    model(input_ids=long, use_cache=False)
    rotary = model.model.rotary_emb
    before, buffer = dict(vars(rotary)), rotary.inv_freq
    attribute_batch(model, locate(model), collate_contrasts(random_contrasts((5, 30))))
    assert rotary.inv_freq is buffer
    assert vars(rotary) == before
    assert not rotary._forward_pre_hooks


class WidthBasedRotary(nn.Module):
    """Rotary frequencies that change at a width that no config states."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        is_long = position_ids.max() + 1 > SWITCH
        return self.inner(hidden, position_ids * (0.25 if is_long else 1.0))


def test_the_self_test_sees_a_switch_that_no_config_states():
    model = tiny_model("llama")
    model.model.rotary_emb = WidthBasedRotary(model.model.rotary_emb)
    location = locate(model)
    assert location.depends_on_width
    contrasts = random_contrasts(LENGTHS)
    scored = attribute_batch(model, location, collate_contrasts(contrasts))
    found = (scored.logit_true_B - scored.logit_false_B).tolist()
    assert found == pytest.approx([plain_difference(model, each) for each in contrasts], abs=1e-5)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_most_models_do_not_depend_on_width(model_type: str):
    model = tiny_model(model_type)
    assert not locate(model).depends_on_width
    assert model_limits(model)[2:] == ((), None)


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (partial(tiny_model, "llama"), 3),
        (partial(tiny_model, "gemma3_text"), 3),
        # Of each of two classes of widths the largest and, where it differs, the lowest.
        (partial(dependent_model, "longrope"), 5),
    ],
)
def test_the_self_test_is_a_few_passes_over_a_few_tokens(model: Callable[[], PreTrainedModel], passes: int):
    """Whatever the width of the switch is."""
    tested = model()
    widths: list[int] = []
    with outputs_changed([tested.model.embed_tokens], lambda _, output: widths.append(output.shape[1])):
        locate(tested)
    assert len(widths) == passes
    assert max(widths) == 5


@pytest.mark.parametrize(
    ("rope_type", "expected"),
    [
        ("longrope", (POSITIONS, 67, (SWITCH,), None)),
        # Each width beyond the switch has frequencies of its own, up to the factor times the positions.
        ("dynamic", (POSITIONS, 67, (SWITCH,), SWITCH)),
        ("yarn", (POSITIONS, 67, (), None)),
        ("llama3", (POSITIONS, 67, (), None)),
        ("linear", (POSITIONS, 67, (), None)),
    ],
)
def test_limits_state_the_switches(rope_type: str, expected: tuple):
    model = dependent_model(rope_type)
    assert limits_of(model.config) == model_limits(model) == expected


@pytest.mark.parametrize("rope_type", types_that_depend_on_width())
def test_the_data_module_makes_batches_of_one_width(rope_type: str, tokenizer: PreTrainedTokenizerBase):
    limits = limits_of(dependent_model(rope_type).config)._replace(vocabulary=None)
    data = CounterfactDataModule([*FACTS, *FACTS[:2], _fact(OF_20_TOKENS)], tokenizer, batch_size=8)
    data.make_contrasts(DataRequirements(limits=limits))
    batches: list[ContrastBatch] = list(data.predict_dataloader())
    found = [[len(each.token_ids) for each in batch.contrasts] for batch in batches]
    expected = [[21, 21, 20]] if rope_type == "longrope" else [[21, 21], [20]]
    assert found == [*expected, [14, 5, 5]]


def test_the_notebook_scores_rows_as_alone(tokenizer: PreTrainedTokenizerBase):
    parameters = parameters_of("longrope", 4)
    model = tiny_model(
        "phi3",
        vocab_size=len(tokenizer),
        rope_parameters=parameters,
        # Phi-3 has it beside the parameters.
        original_max_position_embeddings=SWITCH,
    )
    together = attribute(model, tokenizer, FACTS, max_tokens=4000)
    alone = [attribute(deepcopy(model), tokenizer, [fact])[0] for fact in FACTS]
    found = [each["logit_diff"] for each in together]
    assert found == pytest.approx([each["logit_diff"] for each in alone], abs=1e-5)


def _fact(prompt: str) -> dict[str, str]:
    return {"prompt": prompt, "subject": "Spain", "target_true": " Madrid", "target_false": " Lisbon"}


OF_20_TOKENS = "As you know, I once read in an old book that the capital of Spain is"
FACTS = [
    _fact("The capital of Spain is"),
    _fact("I once read in a book that, as far as I know, the capital of Spain is"),
    _fact("As far as I know now, the capital of Spain is"),
]
