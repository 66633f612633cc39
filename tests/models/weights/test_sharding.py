"""Models that processes share give each of them what the whole model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import random_contrasts, tiny_model
from sharing import CAN_SHARE, passes_of, share

from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.identity import fingerprint
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.models.location import locate
from lit_attr.models.weights import sharding
from lit_attr.models.weights.sharding import load_sharded_model

CPU = torch.device("cpu")


# Tied and untied embeddings, with and without a plan of transformers for their sharding.
@CAN_SHARE
@pytest.mark.parametrize(
    ("model_type", "processes"),
    [
        ("gpt2", 2),
        pytest.param("llama", 2, marks=pytest.mark.slow),
        ("gemma3_text", 2),
        pytest.param("gpt_neox", 3, marks=pytest.mark.slow),
    ],
)
def test_every_process_finds_what_the_whole_model_gives(model_type: str, processes: int, tmp_path: Path):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "model")
    location = locate(model, component=["mlp", "attention"])
    batch = collate_contrasts(random_contrasts((6,)))
    after_waiting = exact_effects_BLT(model, location, batch)
    for rank, found in enumerate(share(tmp_path / "model", tmp_path, processes)):
        assert found["parts"] == len([*model.parameters()])
        # A weight with fewer rows than processes cannot be cut, and one with an odd number not in equal parts.
        assert found["largest part"] <= 0.6
        assert found["fingerprint"] == fingerprint(model)
        assert found["whole in blocks"] == []
        assert found["file"] < 0.05
        expected = passes_of(model, location, rank)
        if rank == 0:
            expected["after waiting"] = after_waiting
        assert {*expected} == {*found} - {"parts", "largest part", "fingerprint", "whole in blocks", "file"}
        for name, values in expected.items():
            torch.testing.assert_close(
                found[name], values, rtol=0, atol=1e-6 * float(values.abs().max()), msg=name
            )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "8bit"}, "quantization: a model that processes share has no such setting"),
        ({"device_map": "auto"}, "device_map: a model that processes share has no such setting"),
        ({"gguf_file": "weights.gguf"}, "model_name: a GGUF file can only be loaded whole"),
    ],
)
def test_settings_that_need_the_whole_model_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ArgumentError, match=message):
        load_sharded_model(DEMO_MODEL, 2, CPU, **settings)


def test_an_adapter_is_refused(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": DEMO_MODEL}))
    with pytest.raises(ArgumentError, match="is an adapter, and processes share the model; merge it"):
        load_sharded_model(str(tmp_path), 2, CPU)


def test_transformers_without_plans_is_refused(monkeypatch: pytest.MonkeyPatch):
    def old(fsdp_size: int) -> None:
        """DistributedConfig, as it was before transformers 5.23."""

    monkeypatch.setattr(sharding, "DistributedConfig", old)
    with pytest.raises(ArgumentError, match="processes can share a model with transformers 5.23 or newer"):
        load_sharded_model(DEMO_MODEL, 2, CPU)


def test_another_device_than_the_machines_is_refused():
    with pytest.raises(UserError, match="trainer.accelerator: transformers shares a model on .*, not on meta"):
        load_sharded_model(DEMO_MODEL, 2, torch.device("meta"))
