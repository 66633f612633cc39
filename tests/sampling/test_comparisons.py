"""The run's sample of a loader that knows no random order."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.module import AttributionModule

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def pairs_of(contrasts: list[Contrast]) -> DataLoader[Contrast]:
    return DataLoader(contrasts, batch_size=2, collate_fn=collate_contrasts)


@pytest.mark.parametrize(("processes", "expected"), [(1, 5), (2, 3), (5, 1)])
def test_a_loader_without_places_gets_its_first_contrasts_compared(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast], processes: int, expected: int
):
    """The first ceil(N / processes) of both loaders together, not of each."""
    module = AttributionModule(model=random_model, verify=5)
    trainer = pl.Trainer(accelerator="cpu", **QUIET)
    trainer.strategy.world_size = processes
    loaders = [pairs_of(sample_contrasts[:4]), pairs_of(sample_contrasts[4:10])]
    predictions = trainer.predict(module, loaders)
    exact = [effects for batches in predictions for batch in batches for effects in batch.exact]
    assert [effects.contrast for effects in exact] == sample_contrasts[:expected]
    assert {effects.place for effects in exact} == {None}
    # A later run starts again.
    (batch, *_) = trainer.predict(module, loaders)[0]
    assert len(batch.exact) == min(expected, 2)


def test_the_rule_exact_is_not_compared_with_itself(
    random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]
):
    module = AttributionModule(model=random_model, rule="exact", verify=5)
    (batch, _) = pl.Trainer(accelerator="cpu", **QUIET).predict(module, pairs_of(sample_contrasts[:4]))
    assert batch.exact == ()
