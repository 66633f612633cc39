"""Full and read-only disks, vanished folders, limited file sizes, and readers during a run."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import orjson
import pytest
from runs import count_batches, finish, own_lines, predict, read_whole, start, wait_until

ROWS = 200
SETTINGS = ["--data.limit", ROWS, "--data.batch_size", 4]
HINT = "; all files in it are whole, and the same command continues once this is fixed"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """The examples of an uninterrupted run, by id."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert finish(start(predict(folder / "out", *SETTINGS), folder / "log")) == 0
    return read_whole(folder / "out", ROWS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk in memory, on machines where this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount(path, "size=64k")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount(path: Path, options: str) -> None:
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount a disk")


def remount(path: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(path)], check=True)


def assert_fails(folder: Path, log: Path, *words: object, file_size: int | None = None) -> str:
    """Runs into a folder that cannot be written to, and returns the one line of its error, without the hint."""
    process = start(predict(folder, *SETTINGS, *words), log, file_size=file_size)
    assert finish(process, seconds=60) == 1
    assert "Traceback" not in log.read_text()
    (line,) = own_lines(log)
    assert line.endswith(HINT)
    assert not [*folder.rglob("*.tmp")]
    for path in (*folder.glob("*.json"), *folder.glob("batches/*.json")):
        json.loads(path.read_bytes())
    return line.removesuffix(HINT)


@pytest.mark.parametrize(
    "kibibytes", [4, *(pytest.param(each, marks=pytest.mark.slow) for each in (8, 16, 24)), 64, 400]
)
def test_a_full_disk(kibibytes: int, disk: Path, uninterrupted: dict[Any, Any], tmp_path: Path):
    """It fills up before the folder, the manifest, the settings or a batch, or after some batches and pictures."""
    remount(disk, f"size={kibibytes}k")
    line = assert_fails(disk / "out", tmp_path / "log")
    assert "No space left on device" in line
    assert "writer.output_dir" in line or "trainer.logger" in line
    remount(disk, "size=50m")
    assert finish(start(predict(disk / "out", *SETTINGS), tmp_path / "log")) == 0
    assert read_whole(disk / "out", ROWS) == uninterrupted


def test_a_read_only_disk(disk: Path, tmp_path: Path):
    remount(disk, "ro")
    line = assert_fails(disk / "out", tmp_path / "log")
    assert line.startswith(
        "lit-attr: error: writer.output_dir or trainer.logger: [Errno 30] Read-only file system: "
    )
    line = assert_fails(disk / "out", tmp_path / "log", "--trainer.logger", "false")
    assert line == (f"lit-attr: error: writer.output_dir: {disk}/out cannot be written to (Read-only file system)")


@pytest.mark.parametrize(
    ("file_size", "setting"),
    [
        (1 << 10, "writer.output_dir: {folder}"),
        pytest.param(64 << 10, "trainer.logger: {folder}/", marks=pytest.mark.slow),
    ],
)
def test_limited_file_size(file_size: int, setting: str, uninterrupted: dict[Any, Any], tmp_path: Path):
    """Records are larger than 1 KiB, TensorBoard's file is larger than 64 KiB."""
    folder, log = tmp_path / "out", tmp_path / "log"
    line = assert_fails(folder, log, file_size=file_size)
    assert line.startswith(f"lit-attr: error: {setting.format(folder=folder)}")
    assert line.endswith("cannot be written to (File too large)")
    assert finish(start(predict(folder, *SETTINGS), log)) == 0
    assert read_whole(folder, ROWS) == uninterrupted


def test_a_folder_that_vanishes(uninterrupted: dict[Any, Any], tmp_path: Path):
    folder, elsewhere, log = tmp_path / "out", tmp_path / "elsewhere", tmp_path / "log"
    process = start(predict(folder, *SETTINGS), log)
    wait_until(lambda: count_batches(folder) >= 5)
    folder.rename(elsewhere)
    assert finish(process, seconds=60) == 1
    assert own_lines(log) == [
        f"lit-attr: error: writer.output_dir: {folder} cannot be written to (No such file or directory){HINT}"
    ]
    elsewhere.rename(folder)
    assert finish(start(predict(folder, *SETTINGS), log)) == 0
    assert read_whole(folder, ROWS) == uninterrupted


def poll(folder: Path, done: Event, results: Any) -> None:
    """Reads all JSON files repeatedly, and counts the reads and the broken files."""
    read, broken = 0, []
    while not done.is_set():
        for path in (*folder.glob("*.json"), *folder.glob("*.jsonl"), *folder.glob("batches/*.json")):
            try:
                for line in path.read_bytes().splitlines():
                    orjson.loads(line)
            except orjson.JSONDecodeError as error:
                broken.append(f"{path}: {error}")
            read += 1
        # Twenty readers without a pause would leave the run no processor.
        time.sleep(0.02)
    results.put((read, broken))


@pytest.mark.slow
def test_twenty_readers_never_see_a_partial_file(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    done, results, folder = context.Event(), context.Queue(), tmp_path / "out"
    readers = [context.Process(target=poll, args=(folder, done, results)) for _ in range(20)]
    for reader in readers:
        reader.start()
    try:
        process = start(predict(folder, *SETTINGS, "--trainer.logger", "false"), tmp_path / "log")
        assert finish(process, seconds=120) == 0
    finally:
        done.set()
    found = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert [broken for _, broken in found if broken] == []
    assert min(read for read, _ in found) > ROWS // 4
    print(f"files read during the run: {sum(read for read, _ in found)}")
