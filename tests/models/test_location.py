"""Modules found by structure."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from toys import ToyModel
from transformers import GPT2LMHeadModel

from lit_attr.errors import UserError
from lit_attr.models.layers import check_layers, resolve_layers
from lit_attr.models.location import locate
from lit_attr.module import AttributionModule


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3)),
        (2, (2,)),
        (-1, (3,)),
        ([3, 0, -1], (0, 3)),
        ([0, 1], (0, 1)),
        # As people write them.
        ("1-3", (1, 2, 3)),
        ("1–2", (1, 2)),
        ("2-2", (2,)),
        ("0:4:2", (0, 2)),
        ("1:", (1, 2, 3)),
        (":2", (0, 1)),
        ("-2:", (2, 3)),
        ("::-1", (0, 1, 2, 3)),
        ("0:12:2", (0, 2)),
        ("0, 2-3", (0, 2, 3)),
        ("-1", (3,)),
        ("3", (3,)),
        (["0:2", 3], (0, 1, 3)),
        (["1-2"], (1, 2)),
    ],
)
def test_resolves_layers(layers: str | int | list[int], expected: tuple[int, ...]):
    assert resolve_layers(layers, 4) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (4, "layers: there is no layer 4; this model has 4, 0 to 3"),
        ([0, -5], "layers: there is no layer -5"),
        ([], "layers: the list is empty"),
        ("some", "layers: 'some' is neither all, a layer, nor a list of layers"),
        ("2-8", "layers: there is no layer 4; this model has 4"),
        ("6-8", "layers: there is no layer 6; this model has 4"),
        ("3-1", "layers: '3-1' ends before it begins; write 1-3"),
        ("0:4:0", "layers: '0:4:0' is neither"),
        ("8:12", "layers: the list is empty"),
        ("1.5", "layers: '1.5' is neither"),
        ("", "layers: '' is neither"),
        (["some"], "layers: 'some' is neither"),
        (62, "layers: there is no layer 62; this model has 4, 0 to 3; YAML reads 1:2 as 62, put it in quotes"),
    ],
)
def test_rejects_layers_out_of_range(layers: str | int | list[int], message: str):
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


def test_paths_lead_to_the_modules(random_model: GPT2LMHeadModel):
    assert locate(random_model, layers=[0, 2]).paths == ("transformer.h.0.mlp", "transformer.h.2.mlp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("model_type", "mlp", "attention"),
    [
        ("llama", "mlp", "self_attn"),
        ("granite", "mlp", "self_attn"),  # scaled afterwards, which gradient × activation does not depend on
        ("gemma2", "post_feedforward_layernorm", "post_attention_layernorm"),
        ("bloom", "mlp.dense_4h_to_h", "self_attention.dense"),  # these modules add the residual themselves
        ("opt", "fc2", "self_attn"),
        ("falcon", "mlp", "self_attention"),  # side by side, and added in place
    ],
)
def test_finds_the_write_in_every_number_format(model_type: str, mlp: str, attention: str, dtype: torch.dtype):
    model = tiny_model(model_type, dtype)
    for component, name in (("mlp", mlp), ("attention", attention)):
        location = locate(model, component=component)
        assert [path.partition(f".{layer}.")[2] for layer, path in enumerate(location.paths)] == [name, name]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("component", ["mlp", "attention"])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("opt", {"do_layer_norm_before": False}),  # a norm after the sum leaves no plain residual
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}),  # the projection's weights without its module
        ("granitemoeshared", {"num_local_experts": 4, "shared_intermediate_size": 16}),  # two modules form the MLP
    ],
)
def test_rejects_unsupported_blocks(model_type: str, settings: dict, component: str):
    model = tiny_model(model_type, **settings)
    with pytest.raises(
        UserError, match=r"is not supported: .*choose block, or name a module by its path"
    ) as refused:
        locate(model, component=component)
    stack = "model.decoder.layers" if model_type == "opt" else ".h" if model_type == "bloom" else "model.layers"
    assert f"{stack}.{{layer}}.self_att" in str(refused.value)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rejects_a_model_that_looks_ahead():
    with pytest.raises(UserError, match="^model: its tokens attend to later ones"):
        locate(tiny_model("roberta", is_decoder=False), component="block")


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("mlp", "^layers: layer 1 runs 2 times in a forward pass; leave it out"),
        ("block", r"blocks.1 returns 2 tensors in a forward pass, not one"),
    ],
)
def test_rejects_a_layer_that_runs_twice(component: str, message: str):
    model = ToyModel()
    model.config.num_hidden_layers = 2
    block = model.blocks[1]
    model.unembed.register_forward_pre_hook(lambda _, args: (block(args[0]),))
    with pytest.raises(UserError, match=message):
        locate(model, component=component, layers=1)


def test_accepts_a_layer_whose_write_is_zero(random_model: GPT2LMHeadModel):
    torch.nn.init.zeros_(random_model.transformer.h[1].mlp.c_proj.weight)
    assert locate(random_model).layers == (0, 1, 2)


def test_rejects_a_model_with_nan_activations(random_model: GPT2LMHeadModel):
    torch.nn.init.constant_(random_model.transformer.h[0].ln_1.weight, float("nan"))
    with pytest.raises(UserError, match=r"^model: layer 1 gets numbers that are not finite"):
        locate(random_model, layers=[1])


def test_names_bfloat16_where_float16_overflows(random_model: GPT2LMHeadModel):
    # 30,000 twice is beyond float16's largest number, 65,504.
    torch.nn.init.constant_(random_model.transformer.wpe.weight, 30_000)
    torch.nn.init.constant_(random_model.transformer.h[0].mlp.c_proj.bias, 40_000)
    with pytest.raises(
        UserError,
        match=r"^model: layer 1 gets numbers that are not finite; float16 overflows in this model; set dtype to b",
    ):
        locate(random_model.half(), layers=[1])
    assert locate(random_model.bfloat16(), layers=[1]).layers == (1,)


def test_without_the_self_test_the_components_own_module_is_taken():
    bloom = tiny_model("bloom")
    assert locate(bloom, self_test=False).modules == tuple(block.mlp for block in bloom.transformer.h)
    with pytest.raises(UserError, match=r"OPTDecoderLayer has 0 mlp modules, not one; .*layers\.\{layer\}\.fc2"):
        locate(tiny_model("opt"), self_test=False)


def test_an_unknown_architecture_is_rejected_with_its_paths():
    model = ToyModel()
    with pytest.raises(UserError) as refused:
        locate(model)
    assert str(refused.value) == (
        "component: ToyModel has 0 lists of modules that could be its decoder blocks, not one; "
        "name a module by its path, one of blocks.{layer}, blocks.{layer}.mlp"
    )
    assert locate(model, component="blocks.{layer}.mlp", layers=-1).modules == (model.blocks[1].mlp,)


def test_rejects_unusable_paths(random_model: GPT2LMHeadModel):
    with pytest.raises(
        UserError,
        match=r"^component: this model has no module transformer.h.0.mlpp; .*transformer.h.\{layer\}.mlp.c_fc",
    ):
        locate(random_model, component="transformer.h.{layer}.mlpp")
    with pytest.raises(UserError, match="'mpl' is none of mlp, attention, block, nor a path"):
        locate(random_model, component="mpl")
    with pytest.raises(
        UserError,
        match=r"attention_dropout has the shape \[2, 4, 5, 5\] for 2 rows of 5 tokens, not a vector for ",
    ):
        locate(tiny_model("bloom"), component="transformer.h.{layer}.self_attention.attention_dropout")
    random_model.transformer.h[1].mlp.act = random_model.transformer.h[0].mlp.act
    with pytest.raises(UserError, match=r"transformer.h.0.mlp.act returns 2 tensors in a forward pass, not one"):
        locate(random_model, component="transformer.h.{layer}.mlp.act", layers=0)


def test_several_components_share_one_self_test():
    model, runs = tiny_model("gemma2"), []
    for module in (model, *model.model.layers):
        module.register_forward_hook(lambda module, *_: runs.append(module))
    mlp = locate(model)
    of_one = runs.copy()
    runs.clear()
    both = locate(model, component=["mlp", "attention"])
    # To know Gemma's write of the MLP is to know that of attention.
    assert runs == of_one
    assert (both.of("mlp").modules, both.top_mlp) == (mlp.modules, mlp.top_mlp)
    assert both.of("attention").modules == tuple(block.post_attention_layernorm for block in model.model.layers)


def test_rejects_components_in_other_layers(random_model: GPT2LMHeadModel):
    random_model.extra = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(UserError) as refused:
        locate(random_model, component=["mlp", "extra.{layer}"], self_test=False)
    assert str(refused.value) == (
        "component: mlp is in 3 layers and extra.{layer} in 1; give each a run of its own"
    )


@pytest.mark.parametrize(
    ("component", "meant"),
    [
        ("attn", "attention"),
        ("self_attn", "attention"),
        ("Attention", "attention"),
        ("attentions", "attention"),
        ("mpl", "mlp"),
        ("MLP", "mlp"),
        ("ffn", "mlp"),
        ("feed_forward", "mlp"),
        ("blocks", "block"),
        ("layer", "block"),
    ],
)
def test_suggests_the_component_that_was_meant(random_model: GPT2LMHeadModel, component: str, meant: str):
    with pytest.raises(UserError, match=rf"nor a path with {{layer}} in it; did you mean {meant}\?$"):
        locate(random_model, component=component)


def test_a_component_like_no_other_gets_no_suggestion(random_model: GPT2LMHeadModel):
    with pytest.raises(UserError, match=r"nor a path with {layer} in it$"):
        locate(random_model, component="resid_post")


def test_layers_are_checked_before_a_model_is_loaded():
    for layers in ("4-8", "0:12:2", 99, [0, "4-8"], "all"):
        check_layers(layers)
        AttributionModule("no/such-model", layers=layers)
    with pytest.raises(UserError, match=r"^model.layers: 'some' is neither all"):
        AttributionModule("no/such-model", layers="some")


@pytest.mark.parametrize("norms", [("input_layernorm",), ("input_layernorm", "post_attention_layernorm")])
def test_accepts_a_block_without_a_norm_before_attention(norms: tuple[str, ...]):
    """Attention of large states is large, which says nothing of the MLP."""
    model = tiny_model("llama")
    for block in model.model.layers:
        for norm in norms:
            setattr(block, norm, torch.nn.Identity())
    assert locate(model).modules == tuple(block.mlp for block in model.model.layers)
    assert locate(model, component="attention").modules == tuple(block.self_attn for block in model.model.layers)


def test_a_norm_after_the_sum_is_still_refused_without_one_before_attention():
    model = tiny_model("llama")
    for block in model.model.layers:
        norm, block.input_layernorm = block.input_layernorm, torch.nn.Identity()
        block.register_forward_hook(lambda _, __, output, norm=norm: norm(output))
    for component in ("mlp", "attention"):
        with pytest.raises(UserError, match="is not supported"):
            locate(model, component=component)
