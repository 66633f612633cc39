"""Batches that exceed the memory, in processes whose memory is limited."""

from __future__ import annotations

import logging
import math
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from lit_attr.errors import UserError, logger
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import load_tokenizer
from lit_attr.module import AttributionModule

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited as on Linux")


class Warnings(logging.Handler):
    """Keeps the warnings of the package."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def attribute(folder: Path, rows: int, tokens: int, megabytes: float, results: Any) -> None:
    """Attributes a batch twice, in a process that may take only so many more megabytes than it has."""
    warnings = Warnings()
    logger.addHandler(warnings)
    module = AttributionModule(str(folder))
    module.configure_model()
    facts = read_facts(open_rows(SAMPLE), limit=rows).facts
    contrasts, _ = build_contrasts(facts, load_tokenizer(str(folder)))
    long = [contrast._replace(token_ids=(contrast.token_ids * tokens)[:tokens]) for contrast in contrasts]
    before = resource.getrlimit(resource.RLIMIT_AS)
    if megabytes < math.inf:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = int(pages * resource.getpagesize() + megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_AS, (size, before[1]))
    found: Any
    try:
        batches = [module.predict_step(collate_contrasts(long), 0) for _ in range(2)]
        found = [
            ([contrast.fact.id for contrast in batch.contrasts], batch.scores_sum_BLT.numpy()) for batch in batches
        ]
    except UserError as error:
        found = str(error)
    resource.setrlimit(resource.RLIMIT_AS, before)
    results.put((found, module._halving._too_many_tokens, warnings.lines))


@pytest.fixture
def run(random_gpt2: Path) -> Callable[..., Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_attr.cli.prediction"])

    def run(*settings: float) -> Any:
        results: Any = context.Queue()
        process = context.Process(target=attribute, args=(random_gpt2, *settings, results))
        process.start()
        found = results.get(timeout=100)
        process.join()
        return found

    return run


@pytest.fixture
def random_gpt2(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=4,
        n_embd=256,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_halves_a_batch_until_it_fits(run: Callable[..., Any]):
    plenty, _, quiet = run(128, 60, math.inf)
    little, too_many, warnings = run(128, 60, 100)
    assert quiet == []
    assert warnings == ["data.max_tokens: the memory does not suffice for a batch; continuing with halves of it"]
    assert too_many < 128 * 60
    for ids, scores in little:
        assert ids == list(range(128))
        np.testing.assert_allclose(scores, plenty[0][1], rtol=1e-4, atol=1e-4)


def test_refuses_a_single_row_that_does_not_fit(run: Callable[..., Any]):
    found, *_ = run(1, 1000, 5)
    assert found == (
        "data.source: the memory does not suffice for a single row of 1000 tokens; a smaller model.dtype or fewer "
        "model.layers need less"
    )
