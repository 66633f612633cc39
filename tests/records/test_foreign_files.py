"""What is in a run's folder and not lit-attr's is left alone, and named where it is in the way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from project import writing_trainer

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.exports.export import export
from lit_attr.records.folder import RunFolder

ROWS = [*open_rows(SAMPLE)][:6]
FOREIGN = (
    *(".notes.tmp", ".draft.json.tmp", ".a.7.tmp", ".manifest.json.tmp", "x.lit-attr.tmp", ".x.lit-attr.tmp"),
    *(".process-list.lock", ".process-1.lock.old", ".finished-thesis", ".claim-form", "notes.txt"),
)
FOLDERS = ("", "batches", "exact", "figures", "figures/facts")


def run(folder: Path) -> None:
    data = CounterfactDataModule(ROWS, batch_size=4)
    writing_trainer(folder, max_heatmaps=2).predict(
        AttributionModule(verify=2), datamodule=data, return_predictions=False
    )


def test_files_of_others_stay(tmp_path: Path):
    mine = [tmp_path / "out" / folder / name for folder in FOLDERS for name in FOREIGN]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    for _ in range(2):
        run(tmp_path / "out")
        assert all(path.read_text() == "mine" for path in mine)


def test_own_temporary_files_are_removed_in_every_folder(tmp_path: Path):
    run(tmp_path)
    left = [tmp_path / folder / ".7-0.png.1234.lit-attr.tmp" for folder in FOLDERS]
    for path in left:
        path.touch()
    run(tmp_path)
    assert not any(path.exists() for path in left)


def test_nothing_is_removed_through_a_link(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    inner = [elsewhere / name for name in (".a.7.lit-attr.tmp", ".claim-3", ".finished-0", "summary.json")]
    for path in inner:
        path.write_text("mine")
    for name in ("batches", "exact", "figures"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(elsewhere)
        with pytest.raises(UserError, match=rf"output_dir: {folder}/{name} is a symbolic link; move it away"):
            run(folder)
    assert all(path.read_text() == "mine" for path in inner)


OWN = (
    *("manifest.json", "summary.json", "rejected.jsonl", "shown.json", "config.yaml", ".lock", ".running"),
    *(".process-1.lock", ".finished-0", ".x.json.7.lit-attr.tmp", "exact/.claim-3", "batches/.a.7.lit-attr.tmp"),
)


@pytest.mark.parametrize("kind", ["a folder", "a symbolic link"])
@pytest.mark.parametrize("name", OWN)
def test_a_folder_or_link_in_the_way_is_named(tmp_path: Path, name: str, kind: str):
    target, path = tmp_path / "target", tmp_path / "out" / name
    target.write_text("mine")
    path.parent.mkdir(parents=True)
    if kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(target)
    folder = RunFolder(tmp_path / "out")
    with pytest.raises(
        UserError, match=rf"^output_dir: {re.escape(str(path))} is {kind}; move it away or give another folder$"
    ):
        folder.lock()
    folder.unlock()
    assert target.read_text() == "mine"
    assert path.is_dir() if kind == "a folder" else path.is_symlink()


@pytest.mark.parametrize("name", ["batches", "exact", "figures"])
def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"output_dir: {tmp_path / name} is a file; move it away"):
        run(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_an_export_does_not_replace_a_link(tmp_path: Path):
    run(tmp_path / "out")
    output = tmp_path / "there.csv"
    output.symlink_to(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=f"^output: {output} exists; give another place, or move it away$"):
        export(tmp_path / "out", "csv", output)
    assert output.is_symlink()
