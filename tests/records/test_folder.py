"""The output folder: its settings, its lock, what is left of a run that died."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.facts.rows import Rejected
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import OutputFolder

SETTINGS = {"model": {"dtype": "float32", "layers": [0, 1]}, "data": {"content": "abc"}}


def write(folder: OutputFolder, batch: AttributionBatch) -> None:
    folder.write_batch(batch.contrasts[0], batch_record(batch))


def test_datasets_loads_the_folder_as_it_is(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    for row in range(2):
        write(folder, batch.select([row]))
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "out" / "batches" / "*.json"),
        field="examples",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert sorted(loaded["id"]) == sorted(contrast.fact.id for contrast in batch.contrasts)
    assert len(loaded[0]["scores"]["sum"]) == 3


def test_ids_never_become_paths(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    first = batch.contrasts[0]
    evil = first._replace(fact=first.fact._replace(id="../../etc/passwd"))
    write(folder, batch.select([0])._replace(contrasts=(evil,)))
    (written,) = folder.batches.iterdir()
    assert json.loads(written.read_text())["examples"][0]["id"] == "../../etc/passwd"


def test_a_folder_is_gone_on_in_only_with_the_same_settings(tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.check(SETTINGS)
    folder.open(SETTINGS, [])
    folder.check(SETTINGS)
    other = {**SETTINGS, "model": {**SETTINGS["model"], "dtype": "bfloat16"}}
    with pytest.raises(
        UserError, match=r"was written with model.dtype 'float32', this run has 'bfloat16'.*overwrite"
    ):
        folder.check(other)


def test_a_folder_of_another_format_is_refused(tmp_path: Path):
    folder = OutputFolder(tmp_path)
    for content, message in (
        (
            '{"format": "lit-attr/manifest", "version": 2}',
            "of format version 2, and this lit-attr knows 1; upgrade",
        ),
        ('{"version": 1}', "not a file of the format lit-attr/manifest"),
        ("{", "not JSON .*; move it away"),
    ):
        folder.manifest.write_text(content)
        with pytest.raises(UserError, match=f"manifest.json: {message}"):
            folder.check(SETTINGS)


def test_moves_aside_only_what_it_knows(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path)
    folder.open(SETTINGS, [])
    write(folder, batch)
    (tmp_path / "notes.txt").write_text("mine")
    folder.move_aside()
    (aside,) = tmp_path.glob("replaced-*")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", aside.name}
    assert {path.name for path in aside.iterdir()} == {"batches", "manifest.json", "rejected.jsonl"}


def test_refused_rows_are_lines_of_json(tmp_path: Path):
    folder = OutputFolder(tmp_path)
    folder.open(SETTINGS, [Rejected(1, "\ud800", "a reason")])
    folder.add_rejected([Rejected(2, 7, "another")])
    lines = [json.loads(line) for line in folder.rejected.read_text().splitlines()]
    assert lines == [
        {"row": 1, "id": "\\ud800", "reason": "a reason"},
        {"row": 2, "id": 7, "reason": "another"},
    ]
    assert folder.count_rejected() == 2


def test_clears_up_what_was_left_half_written(tmp_path: Path):
    (tmp_path / "batches").mkdir()
    mine = tmp_path / "batches" / "notes.tmp"
    for path in (tmp_path / ".manifest.json.7.tmp", tmp_path / "batches" / ".00000001-0.json.7.tmp", mine):
        path.write_text("{")
    OutputFolder(tmp_path).lock()
    assert {path.name for path in tmp_path.rglob("*.tmp")} == {"notes.tmp"}


def test_tells_in_one_line_that_it_cannot_write(tmp_path: Path, batch: AttributionBatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=rf"{tmp_path}/file/out cannot be written to \(Not a directory\); what is there"
    ):
        OutputFolder(tmp_path / "file" / "out").lock()
    folder = OutputFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    for work in (lambda: write(folder, batch), lambda: folder.write_summary({})):
        with pytest.raises(UserError, match=r"out cannot be written to \(No such file or directory\)"):
            work()
