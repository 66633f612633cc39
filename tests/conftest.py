"""Models, facts and batches that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import DEMO_MODEL, load_model, load_tokenizer
from lit_attr.models.location import locate


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, from which the test runs as the program `lit-attr` does."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(DEMO_MODEL)


@pytest.fixture(scope="session")
def demo_model() -> PreTrainedModel:
    return load_model(DEMO_MODEL)


@pytest.fixture(scope="session")
def sample_contrasts(tokenizer: PreTrainedTokenizerBase) -> list[Contrast]:
    """All contrasts of the shipped sample."""
    contrasts, rejected = build_contrasts(read_facts(open_rows(SAMPLE)).facts, tokenizer)
    assert not rejected
    return contrasts


@pytest.fixture
def random_model(tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
    """A GPT-2 of 3 layers with the demo tokenizer, its weights large enough for scores of order one."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_layer=3, n_embd=32, n_head=2, n_positions=64, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def model_folder(random_model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """The random model and its tokenizer, as `save_pretrained` writes them."""
    folder = tmp_path / "model"
    random_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def batch(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]) -> AttributionBatch:
    """The first and the last contrast of the sample, scored by the random model."""
    contrasts = [sample_contrasts[0], sample_contrasts[-1]]
    return attribute_batch(random_model, locate(random_model), collate_contrasts(contrasts))
