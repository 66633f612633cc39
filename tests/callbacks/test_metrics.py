"""Live counts in one process and in two; run as a script, this file is one of the two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import ONE, SAME, TWO, write_run
from torch import distributed

from lit_attr.callbacks.metrics import LiveCounts, SharedSum
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.records.files import read_batch
from lit_attr.records.schema import BatchRecord

PREFERRED, MISSED = {**ONE, "logit_diff": 1.5}, {**TWO, "logit_diff": -0.5}
CPU = torch.device("cpu")


def record_with(folder: Path, *examples: dict[str, Any]) -> BatchRecord:
    (path,) = write_run(folder, examples).glob("batches/*.json")
    return read_batch(path)


def counts_of(record: BatchRecord) -> LiveCounts:
    counts = LiveCounts(record.layers, ["mlp"], record.rule)
    counts.add(record)
    return counts


def at(profile: dict[str, Any], role: str) -> list[float | None]:
    """The mean score of a role in each layer."""
    return [row[MEAN_ROLES.index(role)] for row in profile["mean_score"]]


def test_counts_equal_hand_computed_ones(tmp_path: Path):
    found = counts_of(record_with(tmp_path, PREFERRED, MISSED, SAME)).compute()
    assert (found["contrasts"], found["contrast_accuracy"], found["known_share"]) == (2, 0.5, 0.5)
    assert found["mean_logit_diff"] == 0.5
    # ONE and TWO; of the known ones there is ONE alone.
    assert at(found["profile"], "position 0") == [2.5, 9.5]
    assert at(found["known_profile"], "position 0") == [10, 20]
    assert at(found["profile"], "last") == [5, 2]
    assert at(found["profile"], "further") == [None, None]


def test_reduce_keeps_the_counts_of_a_single_process(tmp_path: Path):
    counts = counts_of(record_with(tmp_path, PREFERRED, MISSED))
    assert counts.reduce(CPU).compute() == counts.compute()
    assert LiveCounts([0], ["mlp"], "gradient").reduce(CPU).compute()["contrasts"] == 0


def test_a_shared_sum_adds_up_its_updates():
    shared = SharedSum(2)
    for _ in range(2):
        shared.update(torch.tensor([0.5, 3.0]))
    assert shared.compute().tolist() == [1, 6]


def test_reduce_adds_up_the_counts_of_two_processes(tmp_path: Path):
    """The second process has nothing to add in the second of two reductions."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=180, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both, first = (
        counts_of(record_with(tmp_path / name, *examples)).compute()
        for name, examples in (("both", (PREFERRED, MISSED)), ("first", (PREFERRED,)))
    )
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [both, first]


def count_in_this_process(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    counts = counts_of(record_with(folder / f"run-{rank}", (PREFERRED, MISSED)[rank]))
    empty = LiveCounts(counts.profiles[0].layers, ["mlp"], "gradient")
    reduced = [each.reduce(CPU).compute() for each in (counts, empty if rank else counts)]
    (folder / f"{rank}.json").write_text(json.dumps(reduced))
    distributed.destroy_process_group()


if __name__ == "__main__":
    count_in_this_process(Path(sys.argv[1]))


def test_components_are_counted_apart(tmp_path: Path):
    """As the first of two, as the second, and added up over processes."""

    def with_attention(example: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
        return {**example, "scores": {"mlp": example["scores"]["mlp"], "attention": other["scores"]["mlp"]}}

    record = record_with(tmp_path, with_attention(PREFERRED, MISSED), with_attention(MISSED, PREFERRED))
    counts = LiveCounts(record.layers, ["mlp", "attention"], record.rule)
    counts.add(record)
    for found in (counts.compute(), counts.reduce(CPU).compute()):
        other = found["other_components"]["attention"]
        assert list(found["other_components"]) == ["attention"]
        # The scores of attention are those of mlp in the other fact: the means of both are the same, and those of
        # the known one are TWO's.
        assert at(other["profile"], "position 0") == at(found["profile"], "position 0") == [2.5, 9.5]
        assert at(found["known_profile"], "position 0") == [10, 20]
        assert at(other["known_profile"], "position 0") == [-5, -1]
        assert other["profile"]["component"] == "attention"
