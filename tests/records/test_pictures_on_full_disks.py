"""A disk that fills up at each kind of file in turn: files are whole or absent, and the next run makes them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from project import writing_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_attr.callbacks import loggers
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.views.paper.figures import write_figures

ROWS = [*open_rows(SAMPLE)][::30]
ROWS.append({**ROWS[0], "id": 9_000, "subject": "not in the prompt"})


def run(folder: Path, *, board: bool) -> None:
    logger = TensorBoardLogger(str(folder / "events"), name="") if board else False
    trainer = writing_trainer(folder, logger=logger, max_heatmaps=3)
    data = CounterfactDataModule(ROWS, batch_size=4)
    trainer.predict(AttributionModule(verify=3), datamodule=data, return_predictions=False)


@pytest.fixture(scope="module", params=[False, True], ids=["files", "tensorboard"])
def board(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def undisturbed(board: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, board=board)
    return content(folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MiB in memory, on machines where this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(path)], check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount a disk")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    """Leaves no room on a disk, not even for an empty file's name or the end of one that is open."""
    with (disk / "filler").open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            try:
                while stream.write(b"\0" * size) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def content(folder: Path) -> dict[str, Any]:
    """The files of a run, without the times in them; event files by what they show."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("events/") and name != ".lock":
            found[name] = path.read_bytes()
    for name, timed in (("manifest.json", ("created", "digest")), ("summary.json", ("seconds",))):
        values = json.loads(found[name])
        found[name] = {key: value for key, value in values.items() if key not in timed}
    found.pop("shown.json", None)
    shown: set[Any] = set()
    for path in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()
        for tag in events.Tags()["images"]:
            shown |= {(tag, event.step, event.encoded_image_string) for event in events.Images(tag)}
        for tag in events.Tags()["scalars"]:
            shown |= {(tag, event.step, event.value) for event in events.Scalars(tag)}
        for tag in events.Tags()["tensors"]:
            shown |= {(tag, event.step, str(event.tensor_proto)) for event in events.Tensors(tag)}
    return {**found, "events": shown}


SINGLE = ("manifest.json", "rejected.jsonl", "exact_effects/*", "shown.json", "summary.json")
SEVERAL = ("batches/*", "exact/*", "facts/*", "relations/*")


def full_at(monkeypatch: pytest.MonkeyPatch, disk: Path, pattern: str) -> Callable[[], bool]:
    """Fills the disk when the second file of a kind is opened, or the only one; returns whether it is full."""
    opened, seen = Path.open, []
    wanted = 2 if pattern in SEVERAL else 1

    def watched(self: Path, mode: str = "r", *words: Any, **named: Any) -> Any:
        # Temporary files begin with the name of the file that they become.
        final = self.with_name(self.name.lstrip(".").split(".lit-attr")[0].rsplit(".", 1)[0])
        if mode.startswith(("w", "a")) and (final.match(pattern) or self.match(pattern)):
            seen.append(self)
            if len(seen) == wanted:
                fill(disk)
        return opened(self, mode, *words, **named)

    monkeypatch.setattr(Path, "open", watched)
    return lambda: len(seen) >= wanted


def assert_the_next_run_completes(disk: Path, board: bool, undisturbed: dict[str, Any]) -> None:
    folder = disk / "out"
    for path in folder.rglob("*.png"):
        Image.open(path).verify()
    assert not [*folder.rglob("*.tmp")]
    assert not (folder / "summary.json").exists()
    (disk / "filler").unlink()
    run(folder, board=board)
    found = content(folder)
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        assert found[name] == value, name


@pytest.mark.parametrize("pattern", [*SINGLE, *SEVERAL])
def test_a_disk_that_fills_at_a_file(
    pattern: str, board: bool, disk: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    if board and pattern in ("facts/*", "relations/*", "exact_effects/*"):
        pytest.skip("TensorBoard has the pictures")
    if not board and pattern == "shown.json":
        pytest.skip("there is no TensorBoard")
    with monkeypatch.context() as patch:
        is_full = full_at(patch, disk, pattern)
        with pytest.raises((UserError, OSError), match="No space left on device"):
            run(disk / "out", board=board)
        assert is_full()
    assert_the_next_run_completes(disk, board, undisturbed)


@pytest.mark.parametrize("picture", [1, 4])
def test_a_disk_that_fills_at_a_picture_for_tensorboard(
    picture: int, board: bool, disk: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    if not board:
        pytest.skip("there is no TensorBoard")
    sent = []

    def send(logger: TensorBoardLogger, tag: str, image: Image.Image, step: int) -> None:
        sent.append(tag)
        if len(sent) == picture:
            fill(disk)
        logger.experiment.add_image(tag, np.asarray(image), global_step=step, dataformats="HWC")

    with monkeypatch.context() as patch:
        patch.setitem(loggers.IMAGE_LOGGERS, TensorBoardLogger, send)
        with pytest.raises((UserError, OSError)):
            run(disk / "out", board=True)
    assert not (disk / "out" / "shown.json").exists()
    assert_the_next_run_completes(disk, True, undisturbed)


def test_a_picture_that_is_not_whole_is_made_again(board: bool, undisturbed: dict[str, Any], tmp_path: Path):
    """Whatever has left it so: an earlier version, or a machine that stopped."""
    run(tmp_path, board=board)
    for place, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        path.write_bytes(path.read_bytes()[: place % 3 * 100])
    for path in tmp_path.rglob("events.out.tfevents.*"):
        os.truncate(path, 100)
    run(tmp_path, board=board)
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"events/x": 3}', b'{"events/x": [["a", "b"]]}', b"\xff"])
def test_a_damaged_list_of_pictures_counts_as_none(
    damage: bytes, board: bool, undisturbed: dict[str, Any], tmp_path: Path
):
    run(tmp_path, board=board)
    (tmp_path / "shown.json").write_bytes(damage)
    run(tmp_path, board=board)
    assert content(tmp_path) == undisturbed


@pytest.mark.parametrize("format", [pytest.param("pdf", marks=pytest.mark.slow), "svg", "png"])
def test_figures_for_print_are_whole_or_not_there(disk: Path, tmp_path: Path, format: str):  # noqa: A002
    run(tmp_path / "out", board=False)
    paths = [*write_figures([tmp_path / "out"], figures=disk / "figures", format=format, facts=1)]
    whole = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    fill(disk)
    with pytest.raises(UserError, match="No space left on device"):
        list(write_figures([tmp_path / "out"], figures=disk / "figures", format=format, facts=1))
    assert not [path for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
    (disk / "filler").unlink()
    assert [*write_figures([tmp_path / "out"], figures=disk / "figures", format=format, facts=1)] == paths
    assert {path: path.read_bytes() for path in paths} == whole
