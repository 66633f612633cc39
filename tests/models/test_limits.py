"""Limits of models, from configs and from loaded models."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import CONFIGS, VOCABULARY, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel

from lit_attr.errors import ArgumentError
from lit_attr.models.limits import ModelLimits, limits_of, model_limits, read_limits
from lit_attr.models.loading import DEMO_MODEL, load_model

# BLOOM has no positions, and its config bounds none.
UNBOUNDED = {"bloom"}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_config_and_model_have_the_same_limits(model_type: str):
    model = tiny_model(model_type)
    positions = None if model_type in UNBOUNDED else 64
    assert limits_of(model.config) == model_limits(model) == ModelLimits(positions, VOCABULARY)


def test_reads_limits_without_weights(random_model: GPT2LMHeadModel, tmp_path: Path):
    random_model.config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert read_limits(str(tmp_path)) == model_limits(random_model)
    assert read_limits(DEMO_MODEL) == model_limits(load_model(DEMO_MODEL))


def test_an_adapter_has_the_limits_of_its_base_model(
    random_model: GPT2LMHeadModel, model_folder: Path, tmp_path: Path
):
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    get_peft_model(load_model(str(model_folder)), config).save_pretrained(tmp_path / "adapter")
    assert read_limits(str(tmp_path / "adapter")) == model_limits(random_model)


def test_a_resized_embedding_counts(random_model: GPT2LMHeadModel):
    random_model.resize_token_embeddings(2100)
    assert model_limits(random_model).vocabulary == 2100


@pytest.mark.parametrize("name", ["/nowhere/at/all", "nobody/nothing"])
def test_reports_a_missing_model_as_load_model_does(name: str):
    messages = []
    for read in (read_limits, load_model):
        with pytest.raises(ArgumentError, match="^model_name: ") as refused:
            read(name)
        messages.append(str(refused.value).partition("(")[0])
    assert messages[0] == messages[1]
