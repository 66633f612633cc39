"""Exports: what they refuse, where they go, and that they are whole or not there."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lit_attr.errors import UserError
from lit_attr.records.exports.export import export
from lit_attr.records.reading import load_attributions, with_lists

FORMATS = ["parquet", "csv", "inseq"]


def seen(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("to", FORMATS)
def test_a_kind_of_score_can_be_missing(relabelled: Callable[..., Path], tmp_path: Path, to: str):
    folder = relabelled(lambda scores: {"mlp": {"sum": scores["mlp"]["sum"]}})
    path = export(folder, to, tmp_path / "out")
    if to == "parquet":
        assert pq.read_table(path).to_pylist() == [with_lists(record) for record in load_attributions(folder)]
    elif to == "csv":
        frame = pd.read_csv(path)
        assert "sum" in frame and "l2" not in frame and set(frame["rule"]) == {"other"}
    else:
        assert len(list(path.iterdir())) == sum(1 for _ in load_attributions(folder))


def test_goes_into_the_runs_folder_and_overwrites_nothing(changed: Callable[..., Path]):
    folder = changed()
    names = {"parquet": "attributions.parquet", "csv": "attributions.csv", "inseq": "inseq"}
    for to, name in names.items():
        assert export(str(folder), to) == folder / name
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for to, name in names.items():
        with pytest.raises(
            UserError, match=f"^output: {folder / name} exists; give another place, or move it away$"
        ):
            export(folder, to)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # A run that resumes in the folder is not disturbed, nor is whoever reads it.
    assert sum(1 for _ in load_attributions(folder)) == 2


@pytest.mark.parametrize(
    "damage, arguments, message",
    [
        ("manifest.json", {}, "there is no manifest.json in it; give the output folder of a run"),
        ("batches", {}, "there is no contrast in it; give the output folder of a run that has some"),
        ("cut", {}, "00000000-0.json: not JSON"),
        ("cut", {"to": "parquet"}, "00000000-0.json: not JSON"),
        ("cut last", {}, "00000000-1.json: not JSON"),
        ("cut last", {"to": "parquet"}, "00000000-1.json: not JSON"),
        ("cut last", {"to": "inseq"}, "00000000-1.json: not JSON"),
        ("", {"per": "layer"}, "per: it is for inseq, not csv; leave it out"),
        ("", {"to": "json"}, "to: 'json' is not one of parquet, csv, inseq"),
        ("", {"output": "{run}/manifest.json/x"}, "output: {run}/manifest.json/x cannot be"),
    ],
)
def test_errors_are_one_line(damage: str, arguments: dict[str, str], message: str, changed: Callable[..., Path]):
    folder = changed()
    if damage.startswith("cut"):
        path = folder / "batches" / ("00000000-1.json" if damage == "cut last" else "00000000-0.json")
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "batches":
        shutil.rmtree(folder / "batches")
    elif damage:
        (folder / damage).unlink()
    before = seen(folder)
    given = {"to": "csv", **{name: value.format(run=folder) for name, value in arguments.items()}}
    with pytest.raises(UserError) as error:
        export(folder, **given)
    assert message.format(run=folder) in str(error.value) and "\n" not in str(error.value)
    assert seen(folder) == before


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize(
    "changes, message",
    [
        ([{"relation_id": None}], "00000000-0.json: .*missing required field `relation_id`"),
        ([{}, {"step": None}], "00000000-1.json: .*missing required field `step`"),
        ([{}, {"more": 1}], "00000000-1.json: .*unknown field `more`"),
        ([{}, {"donor_id": 1}], "lacks donor_id, or has it alone; move its batch file away and run again$"),
    ],
)
def test_refuses_contrasts_that_differ_in_their_fields(
    changes: list[dict[str, Any]], message: str, to: str, changed: Callable[..., Path]
):
    folder = changed(*changes)
    before = seen(folder)
    with pytest.raises(UserError, match=message):
        export(folder, to)
    assert seen(folder) == before


@pytest.mark.parametrize("to", FORMATS)
def test_refuses_contrasts_that_differ_in_their_scores(
    to: str, records: list[dict[str, Any]], changed: Callable[..., Path]
):
    scores = {"mlp": {"sum": records[1]["scores"]["mlp"]["sum"].tolist()}}
    folder = changed({}, {"scores": scores})
    before = seen(folder)
    with pytest.raises(UserError, match=r"lacks scores\.mlp\.l2, or has it alone"):
        export(folder, to)
    assert seen(folder) == before


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_takes_no_more(to: str, run: Path, tmp_path: Path):
    import inseq  # noqa: F401  Python may write what it has compiled of it

    folder = tmp_path / "new"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(UserError) as error:
            export(run, to, folder / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value) == (
        f"output: {folder / 'out'} cannot be written to (File too large); fix this or give another place"
    )
    assert seen(folder) == []


@pytest.mark.parametrize("to", ["parquet", "csv"])
def test_tables_need_no_torch(to: str, run: Path, tmp_path: Path):
    program = (
        f"import sys; from lit_attr.records.exports.export import export; export({str(run)!r}, {to!r}, "
        f"{str(tmp_path / 'out')!r}); assert not {{'torch', 'transformers', 'lightning'}} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_makes_nothing_for_a_folder_that_is_not_a_runs(tmp_path: Path):
    folder = tmp_path / "none"
    with pytest.raises(UserError) as error:
        export(folder, "parquet")
    assert str(error.value) == f"there is no folder {folder}; check the path"
    assert seen(tmp_path) == []
