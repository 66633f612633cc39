"""Modules found by structure."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
)

from lit_attr.errors import UserError
from lit_attr.locate import locate, resolve_layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2, 3)), (2, (2,)), (-1, (3,)), ([3, 0, -1], (0, 3)), ([0, 1], (0, 1))],
)
def test_resolves_layers(layers: str | int | list[int], expected: tuple[int, ...]):
    assert resolve_layers(layers, 4) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (4, "model.layers: there is no layer 4; this model has 4, 0 to 3"),
        ([0, -5], "model.layers: there is no layer -5"),
        ([], "model.layers: the list is empty"),
        ("some", "model.layers: 'some' is neither all, a layer, nor a list of layers"),
    ],
)
def test_refuses_layers_that_are_not_there(layers: str | int | list[int], message: str):
    with pytest.raises(UserError) as refused:
        resolve_layers(layers, 4)
    assert str(refused.value).startswith(message)


def test_finds_the_sublayers_of_gpt2(random_model: GPT2LMHeadModel):
    blocks = random_model.transformer.h
    assert locate(random_model).modules == tuple(block.mlp for block in blocks)
    assert locate(random_model, component="attention").modules == tuple(block.attn for block in blocks)
    assert locate(random_model, component="block", layers=-1).modules == (blocks[2],)
    by_path = locate(random_model, component="transformer.h.{layer}.mlp.act", layers=[0, 2])
    assert by_path.modules == (blocks[0].mlp.act, blocks[2].mlp.act)
    assert by_path.layers == (0, 2)


def test_finds_the_sublayers_of_llama():
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=8, intermediate_size=16, num_attention_heads=2, vocab_size=11
    )
    model = AutoModelForCausalLM.from_config(config)
    assert locate(model).modules == tuple(layer.mlp for layer in model.model.layers)
    assert locate(model, component="attention").modules == tuple(layer.self_attn for layer in model.model.layers)


SMALL = {
    "vocab_size": 11,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
}


def small_model(model_type: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**SMALL, **settings})).eval()


@pytest.mark.parametrize(
    ("model_type", "component", "settings"),
    [
        # These add the residual inside.
        ("bloom", "mlp", {}),
        ("bloom", "attention", {}),
        ("mpt", "mlp", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
        # These normalise afterwards.
        ("gemma2", "mlp", {"head_dim": 8}),
        ("gemma2", "attention", {"head_dim": 8}),
        ("olmo2", "mlp", {}),
        # This one scales.
        ("granite", "mlp", {"residual_multiplier": 0.5}),
    ],
)
def test_refuses_an_output_that_is_not_the_write(model_type: str, component: str, settings: dict):
    model = small_model(model_type, **settings)
    with pytest.raises(UserError, match=f"the output of the {component} module is not what is added"):
        locate(model, component=component)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("component", ["mlp", "attention"])
def test_tells_writes_from_others_in_half_precision(dtype: torch.dtype, component: str):
    assert locate(small_model("llama").to(dtype), component=component).layers == (0, 1)
    scaled = small_model("granite", embedding_multiplier=12.0, residual_multiplier=0.22).to(dtype)
    with pytest.raises(UserError, match="is not what is added"):
        locate(scaled, component=component)


def test_takes_a_layer_that_writes_nothing(random_model: GPT2LMHeadModel):
    torch.nn.init.zeros_(random_model.transformer.h[1].mlp.c_proj.weight)
    assert locate(random_model).layers == (0, 1, 2)


def test_names_what_a_block_has_when_it_has_no_mlp():
    config = OPTConfig(
        num_hidden_layers=2, hidden_size=8, ffn_dim=16, num_attention_heads=2, vocab_size=11, word_embed_proj_dim=8
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"OPTDecoderLayer has no single mlp module; it has self_attn, .*fc2"):
        locate(model)


def test_names_the_paths_there_are(random_model: GPT2LMHeadModel):
    with pytest.raises(
        UserError, match=r"no module transformer.h.0.mlpp; layer 0 has .*transformer.h.\{layer\}.mlp"
    ):
        locate(random_model, component="transformer.h.{layer}.mlpp")
    with pytest.raises(UserError, match="'mpl' is none of mlp, attention, block, nor a path"):
        locate(random_model, component="mpl")
