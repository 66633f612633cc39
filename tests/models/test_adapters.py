"""Models with PEFT adapters."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from architectures import tiny_model
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.cli import main
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.identity import fingerprint
from lit_attr.models.limits import read_limits
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import locate
from lit_attr.models.weights.quantization import Quantization
from lit_attr.module import AttributionModule

TARGETS = {"mlp": ["c_fc", "mlp.c_proj"], "attention": ["c_attn"], "both": ["c_attn", "c_proj", "c_fc"]}


def adapted(model: PreTrainedModel, targets: list[str]) -> PeftModel:
    """A model in train mode with a LoRA adapter, both of whose matrices are random, and with dropout."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=targets,
        lora_dropout=0.5,
        init_lora_weights=False,
        fan_in_fan_out=model.config.model_type == "gpt2" and not getattr(model, "is_quantized", False),
    )
    return get_peft_model(model, config).train()


def scores(model: nn.Module, contrasts: list[Contrast]) -> AttributionBatch:
    return attribute_batch(model, locate(model), collate_contrasts(contrasts))


def assert_close(batch: AttributionBatch, expected: AttributionBatch) -> None:
    """Up to rounding in float32."""
    for one, other in zip(batch[4:10], expected[4:10], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def own_logits(model: nn.Module, contrast: Contrast) -> Tensor:
    """The model's own logits of the true and the false answer after the context."""
    last = model(input_ids=torch.tensor([contrast.token_ids])).logits[0, -1]
    return last[[contrast.true_token_id, contrast.false_token_id]].detach()


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_has_the_scores_of_the_merged_weights(sample_contrasts: list[Contrast], targets: str):
    model = adapted(load_model(DEMO_MODEL), TARGETS[targets])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    merged = copy.deepcopy(model).merge_and_unload()
    module = AttributionModule(model=model)
    loader = DataLoader(sample_contrasts[:6], batch_size=6, collate_fn=collate_contrasts)
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-true", logger=False, enable_progress_bar=False, barebones=True
    )
    (batch,) = trainer.predict(module, loader)
    assert_close(batch, scores(merged, sample_contrasts[:6]))
    plain = scores(load_model(DEMO_MODEL), sample_contrasts[:6])
    assert (batch.scores_sum_BLT - plain.scores_sum_BLT).abs().max() > 0.1
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable
    assert module.tokenizer == DEMO_MODEL
    assert module.identity()["adapters"] == {"default": "LORA"}


def test_scores_an_adapter_of_the_embedding(tokenizer: PreTrainedTokenizerBase, sample_contrasts: list[Contrast]):
    model = adapted(tiny_model("llama", vocab_size=len(tokenizer)), ["embed_tokens", "q_proj"])
    module = AttributionModule(model=model)
    assert module.data_requirements().limits.vocabulary == len(tokenizer)
    batch = module.predict_step(collate_contrasts(sample_contrasts[:4]), 0)
    assert_close(batch, scores(model.merge_and_unload(), sample_contrasts[:4]))


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_scores_an_adapter_of_a_quantised_model(sample_contrasts: list[Contrast], quantization: Quantization):
    model = adapted(load_model(DEMO_MODEL, quantization=quantization), TARGETS["both"])
    module = AttributionModule(model=model)
    batch = module.predict_step(collate_contrasts(sample_contrasts[:1]), 0)
    found = torch.cat([batch.logit_true_B, batch.logit_false_B])
    torch.testing.assert_close(found, own_logits(model.eval(), sample_contrasts[0]), rtol=1e-3, atol=1e-3)
    assert batch.scores_sum_BLT.abs().sum() > 0
    assert module.identity()["quantization"] == quantization


def test_the_fingerprint_covers_the_state_of_an_adapter():
    model = adapted(load_model(DEMO_MODEL), TARGETS["mlp"])
    seen = [fingerprint(model)]
    assert fingerprint(model) == seen[0]
    with model.disable_adapter():
        seen.append(fingerprint(model))
    next(module for module in model.modules() if hasattr(module, "merged_adapters")).scaling["default"] *= 2
    seen.append(fingerprint(model))
    model.add_adapter("other", model.peft_config["default"])
    seen.append(fingerprint(model))
    model.set_adapter("other")
    seen.append(fingerprint(model))
    assert len(set(seen)) == len(seen)


@pytest.fixture
def adapter_folder(model_folder: Path, tmp_path: Path) -> Path:
    """An adapter as `save_pretrained` writes it: without a tokenizer, with the path of its base model."""
    folder = tmp_path / "adapter"
    adapted(load_model(str(model_folder)), TARGETS["both"]).save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model_folder)
    return folder


def test_an_adapters_folder_loads_its_base_model_and_tokenizer(
    adapter_folder: Path,
    model_folder: Path,
    sample_contrasts: list[Contrast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    model = adapted(load_model(str(model_folder)), TARGETS["both"])
    assert_close(
        scores(load_model(str(adapter_folder)), sample_contrasts[:4]), scores(model, sample_contrasts[:4])
    )
    assert load_tokenizer(str(adapter_folder)).get_vocab() == load_tokenizer(str(model_folder)).get_vocab()
    monkeypatch.chdir(tmp_path)
    main(["predict", "--model.model_name", str(adapter_folder), "--data.limit", "3", "--trainer.logger", "false"])
    manifest = json.loads(Path("lit_attr_output/manifest.json").read_text())
    assert manifest["model"]["adapters"] == {"default": "LORA"}


def test_an_adapters_folder_needs_peft(adapter_folder: Path, tmp_path: Path):
    program = (
        "import importlib.util, sys\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'peft' else find_spec(name, *rest)\n"
        "from lit_attr.cli import main\n"
        "main(sys.argv[1:])"
    )
    words = ["predict", "--model.model_name", str(adapter_folder), "--writer.output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"lit-attr: error: model.model_name: {adapter_folder} is an adapter of another model; "
        "pip install peft to load it"
    )


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_rejects_prompt_and_prefix_tuning(random_model: PreTrainedModel, config: type):
    # Virtual tokens before the context shift all positions.
    model = get_peft_model(random_model, config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(UserError, match=r"its adapter adds virtual tokens before every prompt"):
        AttributionModule(model=model).configure_model()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "holds no object with settings; get the adapter again"),
        (b'"text"', "holds no object with settings"),
        (b"null", "holds no object with settings"),
        (b"{", r"is not JSON \(.*\); get the adapter again"),
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"base_model_name_or_path": 3}', "base_model_name_or_path in .* is not a name; write"),
        (b'{"base_model_name_or_path": ""}', "base_model_name_or_path in .* is not a name"),
        (b'{"base_model_name_or_path": ["a"]}', "base_model_name_or_path in .* is not a name"),
        (b'{"base_model_name_or_path": "a\\u0000b"}', "base_model_name_or_path in .* is not a name"),
    ],
)
def test_malformed_adapter_configurations_are_refused_in_one_line(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "adapter_config.json").write_bytes(content)
    for read, argument in ((load_model, "model_name"), (load_tokenizer, "tokenizer"), (read_limits, "model_name")):
        with pytest.raises(UserError, match=rf"^{argument}: .*{message}") as refused:
            read(str(tmp_path))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_adapters_that_name_each_other_are_refused_in_one_line(count: int, tmp_path: Path):
    folders = [tmp_path / f"adapter{place}" for place in range(count)]
    for folder, following in zip(folders, [*folders[1:], folders[0]], strict=True):
        folder.mkdir()
        config = {"base_model_name_or_path": str(following), "peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    for read, argument in ((load_model, "model_name"), (load_tokenizer, "tokenizer"), (read_limits, "model_name")):
        with pytest.raises(UserError, match=rf"^{argument}: adapters name each other as base model \(.*\); name"):
            read(str(folders[0]))
