"""Every rule on every architecture: the forward pass, and the model afterwards, are unchanged."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from architectures import CONFIGS, random_contrasts, tiny_model
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_attr.attribution.catalogue import CATALOGUE, RuleName, find_rule, rule_title
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.hooks import undisturbed
from lit_attr.models.location import locate

NO_MLP_MODULE = {"opt", "xglm", "biogpt"}
EXPERTS = {"mixtral", "qwen2_moe"}
SETTINGS: list[tuple[RuleName, bool, set[str]]] = [
    ("frozen-norm", False, set()),
    ("linearised", False, NO_MLP_MODULE | EXPERTS),
    ("linearised", True, NO_MLP_MODULE | EXPERTS),
    ("integrated", False, set()),
    ("norm-secant", False, {"olmo2"}),
]
SETTING_NAMES = ["frozen-norm", "linearised", "linearised, frozen attention", "integrated", "norm-secant"]


def test_every_rule_name_has_an_entry():
    assert [*CATALOGUE] == [*get_args(RuleName)]
    assert all(name == entry.name for name, entry in CATALOGUE.items())
    assert all(all(entry[:5]) for entry in CATALOGUE.values())
    assert rule_title("norm-secant") == "gradient × activation, norms by secant"
    assert rule_title("somebody's rule") == "somebody's rule"


def test_the_catalogue_does_not_import_torch():
    program = "import sys, lit_attr.attribution.catalogue; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def state_of(model: PreTrainedModel) -> list[tuple[Any, ...]]:
    return [
        (
            name,
            type(module),
            module.training,
            dict(vars(module)).keys(),
            "forward" in vars(module),
            [len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)],
            [(parameter.requires_grad, parameter.data_ptr(), parameter.grad) for parameter in module.parameters()],
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize(("name", "attention", "refused"), SETTINGS, ids=SETTING_NAMES)
@pytest.mark.parametrize("model_type", CONFIGS)
def test_rules_leave_the_forward_pass_and_the_model_unchanged(
    model_type: str, name: RuleName, attention: bool, refused: set[str]
):
    model = tiny_model(model_type)
    batch = collate_contrasts(random_contrasts((6, 3)))
    before, registry = state_of(model), dict(vars(ALL_ATTENTION_FUNCTIONS))
    location = locate(model)
    if model_type in refused:
        with pytest.raises(ArgumentError, match=r"^rule: "):
            find_rule(model, location, name, frozen_attention=attention)
        assert state_of(model) == before
        return
    plain = attribute_batch(model, location, batch)
    rule = find_rule(model, location, name, frozen_attention=attention)
    with torch.no_grad(), undisturbed(model, torch.device("cpu")):
        logits = model(batch.token_ids_BT, use_cache=False).logits
        with rule.held():
            under_rule = model(batch.token_ids_BT, use_cache=False).logits
    torch.testing.assert_close(under_rule, logits, rtol=0, atol=1e-6)
    scores = attribute_batch(model, location, batch, rule=rule)
    for field in ("logit_true_B", "logit_false_B", "prob_true_B", "rank_true_B"):
        torch.testing.assert_close(getattr(scores, field), getattr(plain, field), rtol=0, atol=1e-6)
    assert scores.scores_sum_BLT.isfinite().all() and scores.scores_sum_BLT.any()
    assert state_of(model) == before
    assert vars(ALL_ATTENTION_FUNCTIONS) == registry


def test_a_rule_is_undone_after_an_error():
    model = tiny_model("llama")
    rule = find_rule(model, locate(model), "linearised", frozen_attention=True)
    before, registry = state_of(model), dict(vars(ALL_ATTENTION_FUNCTIONS))

    def fail() -> None:
        with rule.held():
            assert state_of(model) != before
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert state_of(model) == before
    assert vars(ALL_ATTENTION_FUNCTIONS) == registry


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("relp", {}, "^rule: 'relp' is none of gradient, frozen-norm"),
        ("integrated", {"steps": 0}, "^steps: 0 is less than 1"),
        ("gradient", {"frozen_attention": True}, "^frozen_attention: it belongs to the rule linearised"),
    ],
)
def test_rejects_unknown_rules_and_options(name: Any, options: dict[str, Any], message: str):
    model = tiny_model("gpt2")
    with pytest.raises(ArgumentError, match=message):
        find_rule(model, locate(model), name, **options)


def test_frozen_norm_needs_a_norm():
    model = tiny_model("gpt2")
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    model.transformer.ln_f = torch.nn.Identity()
    with pytest.raises(ArgumentError, match="^rule: this model has no norms; choose gradient or integrated$"):
        find_rule(model, locate(model), "frozen-norm")
