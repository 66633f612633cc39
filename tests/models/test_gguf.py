"""GGUF files: the demo model in one, written by the `gguf` package, scores as the demo model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from project import writing_trainer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import AttributionModule, CounterfactDataModule
from lit_attr.attribution.gradient import attribute_batch
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models import loading
from lit_attr.models.identity import gguf_digest
from lit_attr.models.limits import read_limits
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import locate
from lit_attr.models.weights.quantization import is_quantized, quantization_settings

Load = Callable[..., Any]

# GPT-2's parts in the words of the format; every block has its own.
NAMES = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
BLOCK_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
# Position embeddings that transformers expects of a GPT-2 in a GGUF file, whatever its context length.
POSITIONS = 1024


def gguf_name(name: str) -> str:
    path, kind = name.rsplit(".", 1)
    if path in NAMES:
        return f"{NAMES[path]}.{kind}"
    _, _, layer, part = path.split(".", 3)
    return f"blk.{layer}.{BLOCK_NAMES[part]}.{kind}"


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Writes a GPT-2 and its tokenizer as llama.cpp's converter does, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    for name, weight in model.named_parameters():
        # In the file a matrix is outputs × inputs; GPT-2's own layers have inputs × outputs.
        is_matrix = weight.ndim == 2 and ".h." in name
        array = (weight.T if is_matrix else weight).detach().numpy()
        if name.startswith("transformer.wpe"):
            array = np.concatenate([array, np.zeros((POSITIONS - len(array), config.n_embd), np.float32)])
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(
    tmp_path_factory: pytest.TempPathFactory, demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "demo.gguf", demo_model, tokenizer)


def scores_BLT(model: PreTrainedModel, contrasts: list[Contrast]) -> Tensor:
    return attribute_batch(model, locate(model), collate_contrasts(contrasts)).scores_sum_BLT


def test_a_model_in_a_file_scores_as_the_model_it_was_made_from(
    file: Path, demo_model: PreTrainedModel, sample_contrasts: list[Contrast]
):
    contrasts = sample_contrasts[::30]
    expected_BLT = scores_BLT(demo_model, contrasts)
    for name, gguf_file in ((str(file), None), (str(file.parent), file.name)):
        loaded = load_model(name, gguf_file=gguf_file)
        torch.testing.assert_close(scores_BLT(loaded, contrasts), expected_BLT)


def test_its_weights_are_plain(file: Path):
    model = load_model(str(file))
    assert model.dtype == torch.float32
    assert not is_quantized(model)
    assert quantization_settings(model) == {"quantization": None}


def test_its_tokenizer_is_in_the_file(file: Path, tokenizer: PreTrainedTokenizerBase):
    text = "The capital of Spain is Madrid"
    for name, gguf_file in ((str(file), None), (str(file.parent), file.name)):
        loaded = load_tokenizer(name, gguf_file=gguf_file)
        assert loaded.is_fast
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_run_knows_the_model_by_the_content_of_the_file(file: Path, tmp_path: Path):
    copy = shutil.copy(file, tmp_path / "renamed.gguf")
    assert gguf_digest(str(file), None) == gguf_digest(str(copy), None) == gguf_digest(str(tmp_path), copy.name)
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.gguf").write_bytes(changed)
    assert gguf_digest(str(tmp_path), "changed.gguf") != gguf_digest(str(file), None)
    assert gguf_digest(DEMO_MODEL, None) is None


def test_a_run_takes_model_and_tokenizer_from_the_file(file: Path, tmp_path: Path):
    trainer = writing_trainer(tmp_path / "out", max_heatmaps=0)
    module = AttributionModule(str(file), verify=0)
    trainer.predict(module, datamodule=CounterfactDataModule(limit=5), return_predictions=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["model"]["gguf"] == gguf_digest(str(file), None)
    assert json.loads((tmp_path / "out" / "summary.json").read_bytes())["contrasts"] == 5


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_without_the_package_one_line_names_the_extra(load: Load, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loading, "is_gguf_available", lambda: False)
    with pytest.raises(ArgumentError, match=r"demo\.gguf needs the package .*pip install 'lit-attr\[gguf\]'$"):
        load(str(file))


@pytest.mark.parametrize(
    ("load", "kept"),
    [
        *((load_model, kept) for kept in (0, 3, 100, 100_000, -1000)),
        # The tokenizer precedes the weights.
        *((load_tokenizer, kept) for kept in (0, 3, 100)),
        *((read_limits, kept) for kept in (0, 3, 100)),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(load: Load, kept: int, file: Path, tmp_path: Path):
    (tmp_path / "damaged.gguf").write_bytes(file.read_bytes()[:kept])
    line = r"^(model_name|tokenizer): no \w+ '\S+/damaged\.gguf' could be loaded \(.+\); get the file again, .+$"
    with pytest.raises(ArgumentError, match=line):
        load(str(tmp_path / "damaged.gguf"))


def test_a_file_that_is_not_there_is_named(file: Path):
    with pytest.raises(ArgumentError, match=r"^model_name: there is no file \S+/other\.gguf; check the path$"):
        load_model(str(file.with_name("other.gguf")))
    for load in (load_model, load_tokenizer, read_limits):
        with pytest.raises(ArgumentError, match=r"^\S+: no \w+ \S+ could be loaded \(.*other\.gguf.*\); check"):
            load(str(file.parent), gguf_file="other.gguf")


def test_quantisation_is_refused(file: Path):
    with pytest.raises(ArgumentError, match=r"^quantization: the weights of a GGUF file are dequantised"):
        load_model(str(file), quantization="8bit")
