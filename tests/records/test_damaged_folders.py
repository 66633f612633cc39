"""Run folders whose files are gone, copied or damaged, each refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sealed import reseal, write_batch
from tiny_runs import ONE, TWO, write_run

from lit_attr.errors import UserError
from lit_attr.records.folder import RunFolder
from lit_attr.records.screening import read_screened


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", [ONE])


def test_a_manifest_that_is_not_an_object(run: Path):
    (run / "manifest.json").write_text("[1]\n")
    with pytest.raises(UserError) as refused:
        RunFolder(run).read_manifest()
    assert str(refused.value) == f"{run}/manifest.json: not a JSON object; move it away"


@pytest.mark.parametrize("name", ["model", "data", "run"])
def test_a_manifest_that_lacks_a_part(run: Path, name: str):
    reseal(run / "manifest.json", lambda content: content.pop(name))
    with pytest.raises(UserError) as refused:
        RunFolder(run).read_manifest()
    assert str(refused.value) == f"{run}/manifest.json: it lacks {name}; give another folder"


def test_batches_without_a_manifest(run: Path):
    (run / "manifest.json").unlink()
    with pytest.raises(UserError) as refused:
        RunFolder(run).check({})
    assert str(refused.value) == f"output_dir: {run} has batches but no manifest; give another folder"


def test_a_contrast_in_two_files(run: Path):
    head = json.loads(next(run.glob("batches/*.json")).read_bytes())
    second = write_batch(run, {**head, "examples": [TWO, ONE]})
    (first,) = {*run.glob("batches/*.json")} - {second}
    with pytest.raises(UserError) as refused:
        list(RunFolder(run).read_batches())
    path, other = sorted([first, second])[::-1]
    assert str(refused.value) == (
        f"{path}: id: 'one', step 0, is in {other.name} as well; move one of the two away and run again"
    )


def test_an_exact_effect_that_is_gone_while_nobody_else_writes(run: Path):
    folder = RunFolder(run)
    folder.lock()
    try:
        with pytest.raises(UserError, match=r"exact/.*: this run has written it, and it is gone; run again$"):
            folder.wait_for_exact([("one", 0)])
    finally:
        folder.unlock()


def test_a_damaged_list_of_screened_contrasts(tmp_path: Path):
    path = tmp_path / "screened.jsonl"
    path.write_text('{"id": 1,\n')
    with pytest.raises(
        UserError, match=r"screened.jsonl: line 1 is damaged \(.*\); delete the file and run again$"
    ):
        read_screened(path)
