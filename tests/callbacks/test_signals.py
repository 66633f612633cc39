"""Runs stopped by a signal: the batch in flight is written, one line says how to resume, and the run resumes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from runs import count_batches, finish, launch, own_lines, predict, read_whole, start, wait_until

ROWS = 200
ONE_BY_ONE = ["--data.limit", ROWS, "--data.batch_size", 1, "--trainer.logger", "false"]
TWO = ["--trainer.strategy", "ddp", "--trainer.devices", 2]
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


def stop_line(name: str) -> str:
    return f"lit-attr: stopped by {name}; the same command resumes where this run stopped"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """The examples of an uninterrupted run, by id."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(predict(folder / "out", *ONE_BY_ONE), folder / "log")) == 0
    return read_whole(folder / "out", ROWS)


def assert_resumes(folder: Path, uninterrupted: dict[Any, Any]) -> None:
    """The folder is of a stopped run, and the same command gives it the examples of an uninterrupted one."""
    assert 0 < count_batches(folder) < ROWS
    assert not (folder / "summary.json").exists()
    assert {path.name for path in folder.rglob(".*")} == {".lock"}
    log = folder.parent / "log2"
    assert finish(start(predict(folder, *ONE_BY_ONE), log)) == 0
    assert f"contrasts: {ROWS} (0 from" not in log.read_text()
    assert read_whole(folder, ROWS) == uninterrupted


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_stops_one_process(signum: signal.Signals, uninterrupted: dict[Any, Any], tmp_path: Path):
    folder, log = tmp_path / "out", tmp_path / "log"
    process = start(predict(folder, *ONE_BY_ONE), log)
    wait_until(lambda: count_batches(folder) >= 20)
    assert process.pid is not None
    os.kill(process.pid, signum)
    assert finish(process, seconds=10) == STATUS[signum]
    assert own_lines(log) == [stop_line(signum.name)]
    assert "Traceback" not in log.read_text()
    assert_resumes(folder, uninterrupted)


def test_a_signal_before_the_first_batch(tmp_path: Path):
    process = start(predict(tmp_path / "out", *ONE_BY_ONE), tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").exists())
    time.sleep(0.2)
    process.terminate()
    assert finish(process, seconds=10) == 143
    assert own_lines(tmp_path / "log") == [stop_line("SIGTERM")]
    assert count_batches(tmp_path / "out") == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_two_processes(signum: signal.Signals, uninterrupted: dict[Any, Any], tmp_path: Path):
    """SIGTERM is sent to the first process alone; Ctrl-C in a terminal reaches all."""
    folder, log = tmp_path / "out", tmp_path / "log"
    with launch(["-m", "lit_attr", *predict(folder, *ONE_BY_ONE, *TWO)], log) as run:
        wait_until(lambda: count_batches(folder) >= 20)
        (os.kill if signum == signal.SIGTERM else os.killpg)(run.pid, signum)
        assert run.wait(10) == STATUS[signum]
    assert own_lines(log) == [stop_line(signum.name)]
    assert "Traceback" not in log.read_text()
    assert_resumes(folder, uninterrupted)


def test_a_signal_stops_a_run_of_torchrun(uninterrupted: dict[Any, Any], tmp_path: Path):
    folder, log = tmp_path / "out", tmp_path / "log"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lit_attr"]
    with launch([*torchrun, *predict(folder, *ONE_BY_ONE, *TWO)], log) as run:
        wait_until(lambda: count_batches(folder) >= 20)
        run.terminate()
        assert run.wait(10) != 0
    # torchrun adds lines of its own.
    assert own_lines(log) == [stop_line("SIGTERM")]
    assert_resumes(folder, uninterrupted)


def test_slurm_preempts_all_tasks_of_a_job(uninterrupted: dict[Any, Any], tmp_path: Path):
    """SLURM starts one process per task and sends all of them SIGCONT and SIGTERM, and SIGKILL later."""
    folder = tmp_path / "out"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "facts", "SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost"}
    job |= {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    tasks = [
        start(
            predict(folder, *ONE_BY_ONE, *TWO),
            tmp_path / f"log-{task}",
            environment={**job, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
        )
        for task in range(2)
    ]
    wait_until(lambda: count_batches(folder) >= 20)
    for signum in (signal.SIGCONT, signal.SIGTERM):
        for task in tasks:
            assert task.pid is not None
            os.kill(task.pid, signum)
    assert [finish(task, seconds=10) for task in tasks] == [143, 143]
    assert own_lines(tmp_path / "log-0") == [stop_line("SIGTERM")]
    assert own_lines(tmp_path / "log-1") == []
    assert_resumes(folder, uninterrupted)


def process_of(folder: Path, rank: int) -> int:
    """The id of the process that joined a run with this rank."""
    pid: int = json.loads((folder / f".process-{rank}.lock").read_text())["pid"]
    return pid


@pytest.mark.slow
def test_a_signal_to_one_process_of_two(uninterrupted: dict[Any, Any], tmp_path: Path):
    """The first process notices that the other is gone, and does not wait for it at the end."""
    folder, log = tmp_path / "out", tmp_path / "log"
    with launch(["-m", "lit_attr", *predict(folder, *ONE_BY_ONE, *TWO)], log) as run:
        wait_until(lambda: count_batches(folder) >= 20)
        os.kill(process_of(folder, 1), signal.SIGTERM)
        assert run.wait(20) == 1
    (line,) = own_lines(log)
    assert line.startswith("lit-attr: error: process 1 of the run has ended before all was done; the same command")
    assert "Traceback" not in log.read_text()
    assert_resumes(folder, uninterrupted)


@pytest.mark.parametrize("seconds", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_a_signal_while_two_processes_start(seconds: int, tmp_path: Path):
    folder, log = tmp_path / "out", tmp_path / "log"
    with launch(["-m", "lit_attr", *predict(folder, *ONE_BY_ONE, *TWO)], log) as run:
        time.sleep(seconds)
        run.terminate()
        assert run.wait(10) in (143, -signal.SIGTERM)
    assert len(own_lines(log)) == (run.returncode == 143)
    assert "Traceback" not in log.read_text()


UNEVEN = """
import sys, time
import lit_attr.cli
import lit_attr.cli.prediction

class Uneven(lit_attr.cli.prediction.AttributionModule):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        time.sleep(self.global_rank / 2)
        return super().predict_step(batch, batch_idx, dataloader_idx)

lit_attr.cli.prediction.AttributionModule = Uneven
lit_attr.cli.main()
"""


@pytest.mark.slow
def test_a_signal_while_the_first_process_waits_for_another(tmp_path: Path):
    """It has done its share and waits without a time limit; a signal ends the wait at once."""
    folder, log, script = tmp_path / "out", tmp_path / "log", tmp_path / "uneven.py"
    script.write_text(UNEVEN)
    with launch([str(script), *predict(folder, *ONE_BY_ONE, *TWO)], log) as run:
        wait_until((folder / ".finished-0").exists)
        run.terminate()
        assert run.wait(10) == 143
    assert own_lines(log) == [stop_line("SIGTERM")]
    assert "Traceback" not in log.read_text()


SLOW = """
import sys, time
import lightning.pytorch as pl
import lit_attr.callbacks.signals
from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule

class Slow(AttributionModule):
    def predict_step(self, batch, batch_idx):
        print("working", flush=True)
        time.sleep(60)

lit_attr.callbacks.signals.GRACE_SECONDS = float(sys.argv[2])
callbacks = [AttributionWriter(sys.argv[1]), lit_attr.callbacks.signals.StopOnSignal()]
trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=callbacks)
trainer.predict(Slow(), datamodule=CounterfactDataModule(limit=3))
"""


@pytest.mark.parametrize(
    ("grace", "signals", "said"), [(3, 1, ["SIGTERM"]), pytest.param(60, 2, [], marks=pytest.mark.slow)]
)
def test_a_batch_that_takes_too_long_is_abandoned(grace: int, signals: int, said: list[str], tmp_path: Path):
    """After the grace period, or at once at a second signal."""
    log = tmp_path / "log"
    with launch(["-c", SLOW, str(tmp_path / "out"), str(grace)], log) as run:
        wait_until(lambda: "working" in log.read_text())
        for _ in range(signals):
            run.terminate()
            time.sleep(2.1)
        assert run.wait(10) == 143
    assert own_lines(log) == [f"{stop_line(name)}; the batch in flight is lost" for name in said]
