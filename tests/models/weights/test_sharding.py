"""Models that processes share give each of them what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import random_contrasts, tiny_model
from sharing import passes_of, share

from lit_attr.attribution.exact.effects import exact_effects_BLT
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.identity import fingerprint
from lit_attr.models.location import locate


# Tied and untied embeddings, with and without a plan of transformers for their sharding.
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
        expected = passes_of(model, location, rank)
        if rank == 0:
            expected["after waiting"] = after_waiting
        assert {*expected} == {*found} - {"parts", "largest part", "fingerprint"}
        for name, values in expected.items():
            torch.testing.assert_close(
                found[name], values, rtol=0, atol=1e-6 * float(values.abs().max()), msg=name
            )
