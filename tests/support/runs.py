"""The command line in processes of its own, started fast or as a user starts it."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from lit_attr.cli import main
from lit_attr.records.reading import load_attributions

CPU = ["--trainer.accelerator", "cpu"]
_CONTEXT = multiprocessing.get_context("forkserver")
# Preloaded libraries save a process six seconds.
_CONTEXT.set_forkserver_preload(["lit_attr.cli.prediction"])


def predict(folder: Path, *words: object) -> list[str]:
    """The arguments of a prediction run on the CPU into a folder."""
    return ["predict", "--writer.output_dir", str(folder), "--model.verify", "0", *CPU, *map(str, words)]


def start(
    words: list[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    file_size: int | None = None,
) -> ForkServerProcess:
    """Starts `lit-attr` in a process with preloaded libraries.

    Args:
        words: The arguments of `lit-attr`.
        log: The file for standard output and standard error.
        environment: Variables to add to the environment.
        file_size: The most bytes of a file, as with `ulimit -f`.
    """
    process = _CONTEXT.Process(target=_run, args=(words, log, environment or {}, file_size))
    process.start()
    return process


def launch(
    program: list[str], log: Path, *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `python PROGRAM` as a terminal does, so that Lightning can start further processes."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, *program],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            start_new_session=True,
        )


def finish(process: ForkServerProcess, *, seconds: float = 120) -> int | None:
    """Waits for a started process, and returns its exit status."""
    process.join(seconds)
    return process.exitcode


def wait_until(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.005)


def own_lines(log: Path) -> list[str]:
    """The lines of lit-attr itself, without those of libraries and progress bars."""
    return [line for line in log.read_text().replace("\r", "\n").splitlines() if line.startswith("lit-attr:")]


def count_batches(folder: Path) -> int:
    """The number of batch files."""
    return len([*folder.glob("batches/*.json")])


def read_whole(folder: Path, rows: int) -> dict[Any, dict[str, Any]]:
    """The examples of a finished run by id, after checking that every row is there once and no file is partial."""
    examples = [
        example for path in folder.glob("batches/*.json") for example in json.loads(path.read_text())["examples"]
    ]
    assert sorted(example["id"] for example in examples) == list(range(rows))
    assert {path.name for path in folder.rglob(".*")} == {".lock"}
    assert json.loads((folder / "summary.json").read_text())["contrasts"] == rows
    assert sum(1 for _ in load_attributions(folder)) == rows
    return {example["id"]: example for example in examples}


def _run(words: list[str], log: Path, environment: Mapping[str, str], file_size: int | None) -> None:
    with log.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.environ.update(environment)
    sys.argv = ["lit-attr"]
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    main(words)
