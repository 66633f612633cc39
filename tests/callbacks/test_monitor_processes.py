"""The monitor in a training in two processes; run as a script with a folder, this file is such a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import FACTS, csv_logger, fit, read_csv

from lit_attr.callbacks.monitor import AttributionMonitor


def train(out: Path, processes: int) -> None:
    """Trains without the monitor and with it, over many facts and over one, and writes the losses to files."""
    for name, facts in (("alone", None), ("many", FACTS), ("one", FACTS[:1])):
        callbacks = [] if facts is None else [AttributionMonitor(facts, every_n_steps=1, max_tokens=20)]
        strategy = {"strategy": "ddp", "devices": processes} if processes > 1 else {}
        module = fit(*callbacks, logger=csv_logger(out / name), accumulate_grad_batches=2, **strategy)
        weights = [float(parameter.double().sum()) for parameter in module.parameters()]
        (out / f"{name}-{module.global_rank}.json").write_text(json.dumps([module.losses, weights]))


def test_two_processes_share_the_facts_and_train_as_without_the_monitor(tmp_path: Path):
    (tmp_path / "single").mkdir()
    train(tmp_path / "single", 1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(tmp_path / "ddp")],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        alone, *watched = (
            json.loads((tmp_path / "ddp" / f"{name}-{rank}.json").read_text()) for name in ("alone", "many", "one")
        )
        assert watched == [alone, alone]
    for name, count in (("many", len(FACTS)), ("one", 1)):
        found, single = (read_csv(tmp_path / kind / name) for kind in ("ddp", "single"))
        assert {numbers["contrasts"] for numbers in found.values()} == {count}
        # Each process has three batches an epoch, accumulated in pairs, the last one by itself: two steps.
        assert sorted(found) == [0, 1, 2, 3, 4]
        assert found[0] == pytest.approx(single[0], abs=1e-6)


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True, parents=True)
    train(Path(sys.argv[1]), int(os.environ["LOCAL_WORLD_SIZE"]))
