"""The callbacks in a project of `pytorch_lightning`, the other package with Lightning's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import FACTS, StrangersModule, loader

from lit_attr.callbacks.monitor import AttributionMonitor
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.module import AttributionModule


class TheirModule(pytorch_lightning.LightningModule):
    """The same module as a project of `pytorch_lightning` has it."""

    lm = StrangersModule.lm
    training_step = StrangersModule.training_step
    validation_step = StrangersModule.validation_step
    configure_optimizers = StrangersModule.configure_optimizers

    def __init__(self) -> None:
        super().__init__()
        module = StrangersModule()
        self.tokenizer, self.net, self.losses = module.tokenizer, module.net, []


def logged(package: Any, module: Any, folder: Path) -> tuple[int, int]:
    """How many scalars and pictures the monitor sends to a package's TensorBoardLogger."""
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=package.loggers.TensorBoardLogger(str(folder), name="", version=""),
        callbacks=[AttributionMonitor(FACTS)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(), loader(8, shuffle=False))
    tags = EventAccumulator(str(folder)).Reload().Tags()
    return len([tag for tag in tags["scalars"] if tag.startswith("attribution/")]), len(tags["images"])


def test_the_monitor_logs_the_same_under_both_packages(tmp_path: Path):
    scalars, pictures = logged(pl, StrangersModule(), tmp_path / "ours")
    assert scalars > 10
    assert pictures == 5
    assert logged(pytorch_lightning, TheirModule(), tmp_path / "theirs") == (scalars, pictures)


def test_one_line_names_the_package_to_import(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    # Once a process; another test may have seen it.
    monkeypatch.setattr("lit_attr.errors._logged", set())
    trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(TypeError, match="must be a `LightningModule`"):
        trainer.predict(AttributionModule(), datamodule=CounterfactDataModule(limit=3))
    lines = [record.message for record in caplog.records if record.name == "lit_attr"]
    assert [line for line in lines if "use `import lightning.pytorch as pl`" in line]
