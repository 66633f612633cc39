"""Where a neuron is not defined, `find_neurons` says so in one line."""

from __future__ import annotations

import pytest
from architectures import contrast_of, tiny_model
from toys import ToyModel

from lit_attr.attribution.catalogue import CATALOGUE, RuleName, find_rule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.neurons import find_neurons
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import Location, locate

NORMED = ("gemma2", "gemma3_text", "olmo2")


def test_an_mlp_that_does_not_end_in_a_projection_has_no_neurons():
    model = ToyModel()
    location = Location(
        (0, 1), tuple(block.mlp for block in model.blocks), ("blocks.0.mlp", "blocks.1.mlp"), ("mlp", "mlp")
    )
    with pytest.raises(ArgumentError, match=r"^top_neurons: blocks\.0\.mlp .* does not end in one linear"):
        find_neurons(model, location, 3)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_experts_have_no_neurons(model_type: str):
    model = tiny_model(model_type)
    layer = 0 if model_type == "mixtral" else 1
    with pytest.raises(
        ArgumentError,
        match=rf"^top_neurons: model\.layers\.{layer}\.mlp \(\w+SparseMoeBlock\) in layer {layer} does not end "
        "in one linear projection, as is the case with experts, so that it has no neurons; leave it out or choose "
        "other layers$",
    ):
        find_neurons(model, locate(model), 20)


def test_the_dense_layer_of_a_model_with_experts_has_neurons():
    model = tiny_model("qwen2_moe")
    assert len(find_neurons(model, locate(model, layers=[0]), 20).projections) == 1


@pytest.mark.parametrize("model_type", NORMED)
def test_a_norm_after_the_projection_needs_a_rule_that_holds_it(model_type: str):
    model = tiny_model(model_type)
    with pytest.raises(
        ArgumentError,
        match=r"^top_neurons: the neurons of layer 0 do not add up to the MLP's score \(off by \de-\d+\), since "
        r"the norm model\.layers\.0\.post_feedforward_layernorm comes after them; leave it out or choose the rule "
        "frozen-norm or linearised, which hold norms$",
    ):
        find_neurons(model, locate(model), 20)


@pytest.mark.parametrize("name", ["integrated", "norm-secant", "exact"])
def test_rules_without_a_gradient_at_hidden_units_are_refused(name: RuleName):
    model = tiny_model("gpt2")
    location = locate(model)
    rule = find_rule(model, location, name)
    message = (
        f"^top_neurons: the rule {name} takes no gradient at hidden units; leave it out or choose gradient, "
        "frozen-norm or linearised$"
    )
    with pytest.raises(ArgumentError, match=message):
        find_neurons(model, location, 20, rule=rule)
    top = find_neurons(model, location, 20)
    with pytest.raises(ArgumentError, match=message):
        attribute_batch(model, location, collate_contrasts([contrast_of((1, 2))]), rule=rule, top_neurons=top)
    assert {*CATALOGUE} == {"gradient", "frozen-norm", "linearised", "integrated", "norm-secant", "exact"}


@pytest.mark.parametrize(
    ("count", "component", "message"),
    [
        (0, "mlp", "^top_neurons: 0 is less than 1; give 1 or more$"),
        (5, "attention", "^top_neurons: only MLPs have neurons; leave it out or add mlp to the components$"),
    ],
)
def test_other_settings_are_refused(count: int, component: str, message: str):
    model = tiny_model("gpt2")
    with pytest.raises(ArgumentError, match=message):
        find_neurons(model, locate(model, component=component), count)
