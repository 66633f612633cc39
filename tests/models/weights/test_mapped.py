"""Weights that are views of a mapped file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sharing import resident_mebibytes
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from lit_attr.models.weights.mapped import copy_mapped_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")


def test_weights_leave_the_file(tmp_path: Path):
    torch.manual_seed(0)
    written = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=512, n_head=4, vocab_size=1000))
    written.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    model = GPT2LMHeadModel.from_pretrained(tmp_path).requires_grad_(False)
    # Reads all weights. Without this the test would show nothing.
    expected = {name: weight.sum().item() for name, weight in model.named_parameters()}
    assert resident_mebibytes(file) > 40
    copy_mapped_weights(model)
    assert resident_mebibytes(file) < 1
    for name, weight in written.named_parameters():
        found = model.get_parameter(name)
        assert torch.equal(found, weight) and found.sum().item() == expected[name]
        assert not found.requires_grad
    # Tied weights stay tied.
    assert model.lm_head.weight is model.transformer.wte.weight


def test_parts_of_weights_leave_the_file(tmp_path: Path):
    """The other parts with them, which the kernel may have mapped in large folios."""
    file = tmp_path / "model.safetensors"
    save_file({str(place): torch.full((512, 1024), float(place)) for place in range(24)}, file)
    with safe_open(file, framework="pt") as opened:
        parts = [opened.get_slice(name)[:256] for name in map(str, range(24))]
    model = nn.ParameterList(parts)
    assert sum(weight.sum().item() for weight in model) == 256 * 1024 * sum(range(24))
    assert resident_mebibytes(file) > 20
    copy_mapped_weights(model)
    assert resident_mebibytes(file) < 1
    assert sum(weight.sum().item() for weight in model) == 256 * 1024 * sum(range(24))
    # What else reads the file still finds it.
    assert sum(part.sum().item() for part in parts) == 256 * 1024 * sum(range(24))


def test_weights_in_memory_stay_as_they_are():
    """Also those that are views of one piece of memory, as a mapped file's are."""
    whole = torch.arange(6.0)
    model = nn.ModuleDict({"first": nn.Linear(2, 1, bias=False), "second": nn.Linear(2, 1, bias=False)})
    for place, part in enumerate(model.values()):
        part.weight = nn.Parameter(whole[2 * place : 2 * place + 2][None])
    before = [*model.parameters()]
    copy_mapped_weights(model)
    assert all(found is given for found, given in zip(model.parameters(), before, strict=True))
    assert whole.tolist() == [0, 1, 2, 3, 4, 5]
