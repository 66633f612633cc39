"""The callbacks in a project of `pytorch_lightning`, the other package with Lightning's classes.

Run as a script with a folder, this file is such a project: what imports the other package is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import FACTS, StrangersModule, loader

from lit_attr.callbacks.monitor import AttributionMonitor
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.module import AttributionModule


def logged(package: Any, module: Any, folder: Path) -> list[int]:
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
    return [len([tag for tag in tags["scalars"] if tag.startswith("attribution/")]), len(tags["images"])]


def other_project(folder: Path) -> None:
    """Trains a module of `pytorch_lightning`, then tries to predict with ours in its Trainer."""
    import pytorch_lightning

    class TheirModule(pytorch_lightning.LightningModule):
        lm = StrangersModule.lm
        training_step = StrangersModule.training_step
        validation_step = StrangersModule.validation_step
        configure_optimizers = StrangersModule.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            module = StrangersModule()
            self.tokenizer, self.net, self.losses = module.tokenizer, module.net, []

    counts = logged(pytorch_lightning, TheirModule(), folder / "theirs")
    trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    try:
        trainer.predict(AttributionModule(), datamodule=CounterfactDataModule(limit=3))
    except TypeError as error:
        (folder / "found.json").write_text(json.dumps({"counts": counts, "error": str(error)}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the other project has found, and what it has said."""
    folder = tmp_path_factory.mktemp("other")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()), done.stderr


def test_the_monitor_logs_the_same_under_both_packages(project: tuple[dict[str, Any], str], tmp_path: Path):
    scalars, pictures = logged(pl, StrangersModule(), tmp_path)
    assert scalars > 10
    assert pictures == 5
    assert project[0]["counts"] == [scalars, pictures]


def test_one_line_names_the_package_to_import(project: tuple[dict[str, Any], str]):
    found, said = project
    assert "must be a `LightningModule`" in found["error"]
    (line,) = [line for line in said.splitlines() if "AttributionModule: pytorch_lightning is imported" in line]
    assert line.endswith("use `import lightning.pytorch as pl` for the Trainer")


if __name__ == "__main__":
    other_project(Path(sys.argv[1]))
