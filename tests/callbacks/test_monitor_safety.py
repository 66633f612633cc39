"""What the monitor must not do: end a training, or attribute other weights than the optimizer's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from trainings import FACTS, csv_logger, fit, read_csv

import lit_attr.callbacks.monitor
from lit_attr.callbacks.monitor import AttributionMonitor


class SwapAtValidation(pl.Callback):
    """Averages weights in a simple way, and validates with the averages in the place of the weights."""

    def __init__(self) -> None:
        self.average: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        weights = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.average = [(old + new) / 2 for old, new in zip(self.average or weights, weights, strict=True)]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            self.kept = [parameter.detach().clone() for parameter in pl_module.parameters()]
            self.put(pl_module, self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.kept:
            self.put(pl_module, self.kept)

    def put(self, module: pl.LightningModule, weights: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(module.parameters(), weights, strict=True):
                parameter.copy_(weight)


@pytest.mark.parametrize("averaging", [SwapAtValidation, lambda: EMAWeightAveraging(decay=0.5)])
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("interval", [1.0, 2])
def test_attributes_the_weights_of_the_optimizer(averaging: Any, is_first: bool, interval: float, tmp_path: Path):
    found = {}
    for name, others in (("alone", []), ("averaged", [averaging()])):
        callbacks = [AttributionMonitor(FACTS), *others]
        settings = {"logger": csv_logger(tmp_path / name), "val_check_interval": interval}
        fit(*(callbacks if is_first else callbacks[::-1]), **settings)
        found[name] = read_csv(tmp_path / name)
    assert len(found["alone"]) > 2
    assert found["averaged"] == found["alone"]


def weights(module: pl.LightningModule) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("broken", ["score_batch", "show_image", "profile_image"])
def test_a_pass_that_fails_does_not_end_the_training(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    alone = fit()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(lit_attr.callbacks.monitor, broken, fail)
    logger = pl.loggers.TensorBoardLogger(str(tmp_path))
    watched = fit(AttributionMonitor(FACTS, every_n_steps=1), logger=logger)
    assert watched.losses == alone.losses
    assert all(map(torch.equal, weights(watched), weights(alone)))
    warnings = [record.message for record in caplog.records if record.name == "lit_attr"]
    assert [each for each in warnings if "broken on purpose" in each] in ([], [LEFT_OUT])
    assert all("broken on purpose" in each for each in warnings)


class CompiledAtStart(pl.Callback):
    """Compiles the language model of a training in place, as a whole or block by block."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        modules = {"uncompiled": [], "whole": [pl_module.lm], "blocks": [*pl_module.lm.transformer.h]}[self.kind]
        for module in modules:
            module.compile(backend="eager")


@pytest.mark.parametrize("kind", ["uncompiled", pytest.param("whole", marks=pytest.mark.slow), "blocks"])
def test_a_compiled_model_is_trained_and_attributed_as_it_is(kind: str, tmp_path: Path):
    alone = fit(CompiledAtStart(kind))
    monitor = AttributionMonitor(FACTS, every_n_steps=2)
    watched = fit(CompiledAtStart(kind), monitor, logger=csv_logger(tmp_path / kind))
    assert watched.losses == alone.losses
    assert all(map(torch.equal, weights(watched), weights(alone)))
    fit(AttributionMonitor(FACTS, every_n_steps=2), logger=csv_logger(tmp_path / "copy"))
    found, expected = read_csv(tmp_path / kind), read_csv(tmp_path / "copy")
    assert sorted(found) == sorted(expected)
    # The pass before the first step has the same weights; later ones are of trainings that round differently.
    assert found[0] == expected[0]


LEFT_OUT = "AttributionMonitor: a pass is left out (broken on purpose); the training continues"


def train(out: Path, rank: int) -> None:
    """Trains in this process of two; the monitor fails in the second one, at the first pass alone."""
    attribute, calls = lit_attr.callbacks.monitor.score_batch, []

    def fail_once(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if rank == 1 and len(calls) == 1:
            raise RuntimeError("broken on purpose")
        return attribute(*args, **named)

    lit_attr.callbacks.monitor.score_batch = fail_once
    monitor = AttributionMonitor(FACTS, every_n_steps=1, max_tokens=20)
    module = fit(monitor, logger=csv_logger(out), strategy="ddp", devices=2)
    (out / f"{rank}.json").write_text(json.dumps(module.losses))


def test_two_processes_leave_out_a_pass_that_fails_in_one(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=180, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a pass is left out (it failed in another process); the training continues" in done.stderr
    # Two epochs of three batches in each process; the pass before the first step is missing.
    assert sorted(read_csv(tmp_path)) == [1, 2, 3, 4, 5, 6]
    assert len(json.loads((tmp_path / "1.json").read_text())) == 6


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True, parents=True)
    train(Path(sys.argv[1]), int(os.environ["RANK"]))
