"""What runs with a choice of contrasts and with mean ablation need beside the module."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.module import AttributionModule


def trainer(*callbacks: pl.Callback) -> pl.Trainer:
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", callbacks=[*callbacks], **options)


def test_a_choice_of_contrasts_needs_a_writer():
    with pytest.raises(UserError) as refused:
        trainer().predict(AttributionModule(only="known"), datamodule=CounterfactDataModule(limit=3))
    assert str(refused.value) == (
        "model.only: known needs an AttributionWriter among trainer.callbacks; add one, or leave it out"
    )


def test_a_choice_that_leaves_no_contrast_is_refused(tmp_path: Path):
    # The answers are swapped, so that the model prefers the false one.
    data = CounterfactDataModule(limit=1, columns={"target_true": "target_false", "target_false": "target_true"})
    with pytest.raises(UserError) as refused:
        trainer(AttributionWriter(str(tmp_path / "out"))).predict(AttributionModule(only="known"), datamodule=data)
    assert str(refused.value) == "model.only: no contrast of 1 is known; give other facts or all"


def test_mean_ablation_needs_contrasts_to_average(tmp_path: Path, sample_contrasts: list[Contrast]):
    loader = DataLoader(sample_contrasts[:4], batch_size=2, collate_fn=collate_contrasts)
    with pytest.raises(UserError) as refused:
        trainer(AttributionWriter(str(tmp_path / "out"))).predict(AttributionModule(ablation="mean"), loader)
    assert str(refused.value) == (
        "model.ablation: mean needs contrasts to average; use a CounterfactDataModule, or mean_writes"
    )
