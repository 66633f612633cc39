"""Loading by name, folder and number format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2LMHeadModel, PreTrainedTokenizerFast

from lit_attr import errors
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.identity import fingerprint
from lit_attr.models.language_model import check_model, is_placed
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import locate
from lit_attr.models.weights.quantization import Quantization, quantization_settings
from lit_attr.module import AttributionModule


def test_loads_a_folder_in_eval_mode(model_folder: Path, random_model: GPT2LMHeadModel):
    model = load_model(str(model_folder))
    assert not model.training
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), random_model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_loads_in_half_precision(model_folder: Path, dtype: str):
    assert load_model(str(model_folder), dtype=dtype).dtype == getattr(torch, dtype)


def test_auto_takes_the_dtype_of_the_checkpoint(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(("quantization", "layer"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_loads_quantised(quantization: Quantization, layer: str):
    model = load_model(DEMO_MODEL, quantization=quantization)
    # Four in each of eight blocks.
    assert sum(type(module).__name__ == layer for module in model.modules()) == 32
    assert is_placed(model)
    assert not is_placed(load_model(DEMO_MODEL))


def test_a_quantised_checkpoint_keeps_its_settings(tmp_path: Path):
    saved = load_model(DEMO_MODEL, quantization="8bit")
    saved.save_pretrained(tmp_path)
    assert quantization_settings(load_model(str(tmp_path))) == quantization_settings(saved)
    with pytest.raises(UserError, match=r"^quantization: .* is already quantised, with 8bit; leave it out"):
        load_model(str(tmp_path), quantization="4bit")
    with pytest.raises(UserError, match=r"^llm_int8_threshold: .* is already quantised, with 6.0; leave"):
        load_model(str(tmp_path), quantization="8bit", llm_int8_threshold=0)


def test_bitsandbytes_warns_once(
    sample_contrasts: list[Contrast], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(errors, "_logged", set())
    for _ in range(2):
        model = load_model(DEMO_MODEL, quantization="8bit")
        for start in (0, 4):
            attribute_batch(model, locate(model), collate_contrasts(sample_contrasts[start : start + 4]))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("bitsandbytes")] == [
        "MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"llm_int8_threshold": 0.0}, "^llm_int8_threshold: it needs quantization 8bit; set"),
        ({"llm_int8_threshold": 0.0, "quantization": "4bit"}, "^llm_int8_threshold: it needs quantization 8bit"),
        ({"llm_int8_threshold": -1.0, "quantization": "8bit"}, "^llm_int8_threshold: -1.0 is less than 0"),
        (
            {"device_map": {"": "disk"}, "quantization": "8bit"},
            "^device_map: a quantised model cannot be offloaded",
        ),
        (
            {"device_map": {"transformer": "cpu", "lm_head": 0}, "quantization": "4bit"},
            "^device_map: a quantised model cannot be offloaded",
        ),
        ({"device_map": "nowhere"}, "^device_map: 'nowhere' cannot be used .*; change it or leave it out"),
    ],
)
def test_rejects_incompatible_settings(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load_model(DEMO_MODEL, **settings)


def test_rejects_a_quantised_config_without_quantised_layers():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, device_map={"": "disk"}, quantization_config=config)
    with pytest.raises(UserError, match="^model: its config says 8bit, but none of its layers is quantised; load"):
        check_model(model)


def test_offloads_pickled_weights_to_a_folder(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.config.save_pretrained(tmp_path)
    torch.save(random_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"^device_map: .* cannot be used .*; set offload_folder"):
        load_model(str(tmp_path), device_map={"": "disk"}, use_safetensors=False)
    options = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offloaded")}
    model = load_model(str(tmp_path), use_safetensors=False, **options)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert fingerprint(model) == fingerprint(random_model)


def test_reports_a_missing_folder(tmp_path: Path):
    missing = str(tmp_path / "none")
    with pytest.raises(UserError, match=f"^model_name: there is no folder {missing}; check the path"):
        load_model(missing)
    with pytest.raises(UserError, match=f"^tokenizer: there is no folder {missing}; check the path"):
        load_tokenizer(missing)


def test_rejects_a_checkpoint_with_missing_weights(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.save_pretrained(tmp_path)
    config = random_model.config
    config.n_layer = 4
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 12 weights of its config, such as transformer.h.3"):
        load_model(str(tmp_path))


def test_rejects_a_revision_of_a_folder(model_folder: Path):
    with pytest.raises(UserError, match="^revision: 'v2' is for models on the hub"):
        load_model(str(model_folder), revision="v2")


def test_reports_a_folder_without_a_tokenizer(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^tokenizer: "):
        load_tokenizer(str(tmp_path))


def test_reports_a_folder_without_a_model(tmp_path: Path):
    with pytest.raises(UserError, match=r"^model_name: no model .* could be loaded .*save_pretrained"):
        load_model(str(tmp_path))


def test_reports_a_hub_model_that_cannot_be_loaded():
    with pytest.raises(UserError, match=r"^model_name: no model 'nobody/nothing' could be loaded .*network"):
        load_model("nobody/nothing")


def test_fingerprint_identifies_the_weights(random_model: GPT2LMHeadModel, model_folder: Path):
    before = fingerprint(random_model)
    assert fingerprint(load_model(str(model_folder))) == before
    with torch.no_grad():
        random_model.transformer.h[1].mlp.c_fc.bias += 0.01
    assert fingerprint(random_model) != before


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a checkpoint has run')",)


def test_reads_pickled_weights_on_request_and_never_runs_code(demo_model: Any, tmp_path: Path):
    demo_model.config.save_pretrained(tmp_path)
    torch.save(demo_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no safetensors files; false reads pickled ones"):
        load_model(str(tmp_path))
    read = load_model(str(tmp_path), use_safetensors=False).state_dict()
    for name, weights in demo_model.state_dict().items():
        assert torch.equal(read[name], weights)
    torch.save({"transformer.wte.weight": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could be loaded"):
        load_model(str(tmp_path), use_safetensors=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float8"}, "^dtype: 'float8' is not one of float32, bfloat16, float16, auto"),
        ({"dtype": "float64"}, "^dtype: 'float64' is not one of"),
        ({"dtype": "nn"}, "^dtype: 'nn' is not one of"),
        ({"dtype": torch.float16}, "^dtype: torch.float16 is not one of"),
        ({"dtype": None}, "^dtype: None is not one of"),
        ({"quantization": "3bit"}, "^quantization: '3bit' is not one of 8bit, 4bit"),
        ({"quantization": 8}, "^quantization: 8 is not one of"),
        ({"quantization": ""}, "^quantization: '' is not one of"),
    ],
)
def test_other_words_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        load_model(DEMO_MODEL, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "relp"}, "^model.rule: 'relp' is not one of gradient, frozen-norm"),
        ({"rule": ["gradient"]}, r"^model.rule: \['gradient'\] is not one of"),
        ({"step": "first"}, "^model.step: 'first' is not one of divergence, all"),
        ({"dtype": "half"}, "^model.dtype: 'half' is not one of"),
    ],
)
def test_other_words_are_refused_before_a_model_is_loaded(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        AttributionModule("no/such-model", **settings)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("component", ["mlp", "block", "transformer.h.{layer}.mlp"])
@pytest.mark.parametrize("weight", ["lm_head.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.ln_f.bias"])
def test_a_weight_that_is_not_finite_is_named(
    random_model: GPT2LMHeadModel, weight: str, component: str, value: float
):
    model = random_model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.get_parameter(weight)[:] = value
    with pytest.raises(
        UserError, match=rf"^model: .* not finite; its weight {weight} is not finite.*; get an intact"
    ):
        locate(model, component=component)


def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path: Path):
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(UserError) as refused:
        load_tokenizer(str(tmp_path))
    assert str(refused.value) == f"tokenizer: the tokenizer of {tmp_path} has no vocabulary; name another one"
