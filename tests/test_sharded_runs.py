"""Runs whose processes share the model: the files of one process, and what happens when a process is killed."""

from __future__ import annotations

import json
import signal
import socket
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from runs import count_batches, finish, own_lines, predict, start, wait_until
from sharing import CAN_SHARE
from transformers import GPT2LMHeadModel

from lit_attr.errors import ArgumentError, UserError
from lit_attr.module import AttributionModule
from lit_attr.trainers import check_trainer, named_strategy

SHARDED = ["--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"]
WITHOUT_PICTURES = ["--writer.max_heatmaps", "0", "--trainer.logger", "false"]


def start_sharing(folder: Path, processes: int, *words: object) -> list[ForkServerProcess]:
    """Starts the processes of a run as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GROUP_RANK": 0,
        "TORCHELASTIC_RUN_ID": "tests",
    }
    started = []
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank}
        environment = {name: str(value) for name, value in (common | own).items()}
        arguments = predict(folder, *WITHOUT_PICTURES, *SHARDED, "--trainer.devices", processes, *words)
        started.append(start(arguments, folder.with_suffix(f".{rank}.log"), environment=environment))
    return started


def read(folder: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The examples and the exact effects of a run by id, each of which must be there once."""
    batches = [json.loads(path.read_text())["examples"] for path in folder.glob("batches/*.json")]
    examples = [example for batch in batches for example in batch]
    exact = [json.loads(path.read_text()) for path in folder.glob("exact/*.json")]
    by_id = {example["id"]: example for example in examples}, {each["id"]: each for each in exact}
    assert [len(found) for found in by_id] == [len(examples), len(exact)]
    return by_id


def assert_alike(folder: Path, expected: Path) -> None:
    """The numbers of a run are those of another to 1e-6 of each contrast's largest."""
    for found, wanted in zip(read(folder), read(expected), strict=True):
        assert found.keys() == wanted.keys()
        for identity, record in wanted.items():
            for numbers in ("scores", "effects"):
                for component, values in record.get(numbers, {}).items():
                    one, other = values, found[identity][numbers][component]
                    if numbers == "scores":
                        one, other = one["sum"], other["sum"]
                    largest = np.abs(np.array(one)).max()
                    np.testing.assert_allclose(other, one, rtol=0, atol=1e-6 * max(largest, 1e-6))


@CAN_SHARE
@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        pytest.param(
            2,
            {"model.min_agreement": 0.95, "model.verify": 4, "model.pilot": 5, "data.limit": 40},
            marks=pytest.mark.slow,
            id="adaptive",
        ),
        pytest.param(
            4,
            {"model.ablation": "mean", "model.only": "known", "model.verify": 3, "data.limit": 30},
            marks=pytest.mark.slow,
            id="mean",
        ),
        # One process has no row of its own, and without the self-test none makes a pass before its first batch.
        pytest.param(
            2,
            {"model.loading.self_test": "false", "model.component": "[mlp, attention]", "data.limit": 1},
            id="one row",
        ),
    ],
)
def test_processes_that_share_the_model_write_what_one_writes(
    processes: int, settings: dict[str, Any], tmp_path: Path
):
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    alone = start(predict(tmp_path / "one", *WITHOUT_PICTURES, *words), tmp_path / "one.log")
    assert finish(alone) == 0
    sharing = start_sharing(tmp_path / "many", processes, *words)
    assert [finish(process, seconds=300) for process in sharing] == [0] * processes
    assert_alike(tmp_path / "many", tmp_path / "one")
    assert own_lines(tmp_path / "many.1.log") == []


@CAN_SHARE
def test_a_killed_process_ends_the_others_and_the_next_run_goes_on(tmp_path: Path):
    folder, words = tmp_path / "many", ["--data.batch_size", 2, "--data.limit", 200, "--model.verify", 2]
    first, second = start_sharing(folder, 2, *words)
    wait_until(lambda: count_batches(folder) > 4)
    second.kill()
    assert finish(first, seconds=60) == 1
    (line,) = own_lines(tmp_path / "many.0.log")
    assert line.startswith("lit-attr: error: trainer.strategy: another process of the run has ended")
    before = count_batches(folder)
    assert second.exitcode == -signal.SIGKILL
    assert 4 < before < 100
    assert [finish(process, seconds=300) for process in start_sharing(folder, 2, *words)] == [0, 0]
    assert finish(start(predict(tmp_path / "one", *WITHOUT_PICTURES, *words), tmp_path / "one.log")) == 0
    assert_alike(folder, tmp_path / "one")


def test_a_model_object_and_a_checkpoint_are_refused(random_model: GPT2LMHeadModel):
    trainer = pl.Trainer(strategy=ModelParallelStrategy(), accelerator="cpu", devices=2, logger=False)
    module = AttributionModule(model=random_model)
    module.trainer = trainer
    with pytest.raises(ArgumentError, match="ckpt_path: it would be loaded whole, and processes share the model"):
        module.on_load_checkpoint({"state_dict": {}})
    with pytest.raises(UserError, match="model: it is loaded whole where processes share it, or shared"):
        module.setup("predict")


def test_a_strategy_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="NoSuchStrategy'; check the path, or name one such as ddp"):
        named_strategy("lightning.pytorch.strategies.NoSuchStrategy")


def test_a_strategy_for_training_is_refused():
    trainer = pl.Trainer(accelerator="cpu", logger=False)
    # Lightning makes a Trainer with this strategy only where there is a GPU.
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(UserError, match="trainer.strategy: FSDPStrategy is for training; take ddp"):
        check_trainer(trainer, spread=False)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("fsdp", "trainer:"),
        ("lightning.pytorch.Trainer", "trainer.strategy: lightning.pytorch.Trainer is not a strategy"),
    ],
)
def test_a_strategy_that_cannot_work_is_refused_in_one_line(strategy: str, reason: str, tmp_path: Path):
    words = predict(tmp_path / "run", "--trainer.strategy", strategy)
    assert finish(start(words, tmp_path / "log")) == 1
    (line,) = own_lines(tmp_path / "log")
    assert line.startswith(f"lit-attr: error: {reason}")
