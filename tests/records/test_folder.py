"""The run folder: its settings, its files, what a killed run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch

from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import digest_contrast
from lit_attr.facts.rows import Rejected
from lit_attr.records.encoding import batch_record, exact_record
from lit_attr.records.files import file_name
from lit_attr.records.folder import RunFolder

SETTINGS = {"model": {"dtype": "float32", "layers": [0, 1, 2]}, "data": {"content": "abc"}}


def write(folder: RunFolder, batch: AttributionBatch) -> None:
    folder.write_batch(batch_record(batch))


def exact_of(batch: AttributionBatch, row: int, *, refused: str | None = None) -> ExactEffects:
    contrast = batch.contrasts[row]
    effects_LT = torch.randn(3, len(contrast.tokens))
    return ExactEffects(contrast, row, batch.layers, batch.components, "zero", effects_LT, 0.0, None, refused)


def test_datasets_loads_the_folder_as_it_is(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
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
    assert len(loaded[0]["scores"]["mlp"]["sum"]) == 3


def test_ids_never_become_paths(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    first = batch.contrasts[0]
    evil = first._replace(fact=first.fact._replace(id="../../etc/passwd"))
    write(folder, batch.select([0])._replace(contrasts=(evil,)))
    (written,) = folder.batches.iterdir()
    assert json.loads(written.read_text())["examples"][0]["id"] == "../../etc/passwd"
    folder.write_exact(exact_record(exact_of(batch, 0)._replace(contrast=evil), rule="gradient"))
    assert [path.name for path in folder.exact.iterdir()] == [written.name]


def test_exact_effects_have_a_file_each(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    written = [exact_of(batch, 0), exact_of(batch, 1)]
    for exact in written:
        folder.write_exact(exact_record(exact, rule="linearised"))
    found = {record.id: (path, record) for path, record in folder.read_exact()}
    assert len(found) == 2
    for exact in written:
        path, record = found[exact.contrast.fact.id]
        assert path.name == f"{exact.contrast.fact.id:08d}-{exact.contrast.step}.json"
        assert (record.place, record.rule, record.refused) == (exact.place, "linearised", None)
        assert torch.equal(torch.tensor(record.effects["mlp"], dtype=torch.float32), exact.effects_LT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lit-attr/attributions"}, "not a file of the format lit-attr/exact"),
        ({"place": "first"}, r"Expected `int \| null`, got `str` - at `\$.place`"),
        ({"effects": {"mlp": [[1.0, None]] * 3}}, r"a number is not finite - at `\$.effects"),
        ({"effects": {"mlp": [[1.0, 2.0]]}}, r"has mlp effects of shape \(1, 2\)"),
    ],
)
def test_refuses_damaged_exact_effects(batch: AttributionBatch, tmp_path: Path, change: dict, message: str):
    folder = RunFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    folder.write_exact(exact_record(exact_of(batch, 0), rule="gradient"))
    (path,) = folder.exact.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        list(folder.read_exact())


def test_a_folder_is_resumed_only_with_the_same_settings(tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
    folder.check(SETTINGS)
    folder.open(SETTINGS, [])
    folder.check(SETTINGS)
    other = {**SETTINGS, "model": {**SETTINGS["model"], "dtype": "bfloat16"}}
    with pytest.raises(
        UserError,
        match=r"^output_dir: .* was written with model.dtype 'float32', this run has 'bfloat16'.*overwrite",
    ):
        folder.check(other)


def test_a_folder_of_another_format_is_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    for content, message in (
        (
            '{"format": "lit-attr/manifest", "version": 3}',
            "of format version 3, and this lit-attr knows 2; upgrade",
        ),
        (
            '{"format": "lit-attr/manifest", "version": 1}',
            "of format version 1, and this lit-attr reads only 2; give another folder",
        ),
        ('{"version": 1}', "not a file of the format lit-attr/manifest"),
        ("{", r"not JSON \(.*\); move it away$"),
    ):
        folder.manifest.write_text(content)
        for read in (lambda: folder.check(SETTINGS), folder.read_manifest):
            with pytest.raises(UserError, match=f"manifest.json: {message}") as refused:
                read()
            assert "\n" not in str(refused.value)


def test_moves_aside_only_its_own_files(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.open(SETTINGS, [])
    write(folder, batch)
    (tmp_path / "notes.txt").write_text("mine")
    folder.move_aside()
    (aside,) = tmp_path.glob("replaced-*")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", aside.name}
    assert {path.name for path in aside.iterdir()} == {"batches", "exact", "manifest.json", "rejected.jsonl"}


def test_refused_rows_are_lines_of_json(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.open(SETTINGS, [Rejected(1, "\ud800", "a reason")])
    folder.add_rejected([Rejected(2, 7, "another")])
    lines = [json.loads(line) for line in folder.rejected.read_text().splitlines()]
    assert lines == [
        {"row": 1, "id": "\\ud800", "reason": "a reason"},
        {"row": 2, "id": 7, "reason": "another"},
    ]
    assert folder.count_rejected() == 2


def test_what_was_refused_while_the_model_ran_stays_refused(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.open(SETTINGS, [Rejected(1, 1, "no subject")])
    folder.add_rejected([Rejected(2, "two", "not finite", 3)])
    with folder.rejected.open("ab") as stream:
        stream.write(b'{"row": 3, "id')
    folder.open(SETTINGS, [Rejected(4, 4, "no answer")])
    lines = [json.loads(line) for line in folder.rejected.read_text().splitlines()]
    assert lines == [
        {"row": 4, "id": 4, "reason": "no answer"},
        {"row": 2, "id": "two", "reason": "not finite", "step": 3},
    ]
    assert folder.read_state().refused == {("two", 3)}


def test_the_state_is_what_is_on_disk(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.open(SETTINGS, [])
    empty = folder.read_state()
    assert not empty.done and not empty.exact and not empty.refused
    write(folder, batch)
    folder.write_exact(exact_record(exact_of(batch, 0), rule="gradient"))
    folder.write_exact(exact_record(exact_of(batch, 1, refused="not finite"), rule="gradient"))
    state = folder.read_state()
    first, second = (contrast.key for contrast in batch.contrasts)
    assert len(state.done) == 2
    assert {first, second} == {key for key in (first, second, (first[0], 99)) if key in state.done}
    for contrast in batch.contrasts:
        assert state.done.digest(contrast.key) == digest_contrast(contrast)
        assert state.done.file(contrast.key) == file_name(*batch.contrasts[0].key)
    assert state.exact == {first: True, second: False}


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"format": "lit-attr/summary", "version": 1}', b'{"contrasts": 3}']
)
def test_a_summary_that_cannot_be_read_counts_as_absent(tmp_path: Path, content: bytes | None):
    folder = RunFolder(tmp_path)
    if content is not None:
        folder.summary.write_bytes(content)
    assert folder.read_summary() is None
    folder.write_summary({"format": "lit-attr/summary", "version": 2, "contrasts": 3})
    assert folder.read_summary()["contrasts"] == 3


def test_removes_half_written_files_and_claims(tmp_path: Path):
    for name in ("batches", "exact"):
        (tmp_path / name).mkdir()
    mine = tmp_path / "batches" / "notes.tmp"
    left = (
        tmp_path / ".manifest.json.7.lit-attr.tmp",
        tmp_path / "batches" / ".00000001-0.json.7.lit-attr.tmp",
        tmp_path / "exact" / ".00000001-0.json.7.lit-attr.tmp",
        tmp_path / "exact" / ".claim-17",
    )
    for path in (mine, *left):
        path.write_text("{")
    folder = RunFolder(tmp_path)
    folder.lock()
    assert mine.exists() and not any(path.exists() for path in left)
    left[-1].touch()
    folder.unlock()
    assert not left[-1].exists()


def test_says_in_one_line_that_it_cannot_write(tmp_path: Path, batch: AttributionBatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=rf"^output_dir: {tmp_path}/file/out cannot be written to \(Not a directory\); all files in it are",
    ):
        RunFolder(tmp_path / "file" / "out").lock()
    folder = RunFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    for work in (lambda: write(folder, batch), lambda: folder.write_summary({})):
        with pytest.raises(UserError, match=r"out cannot be written to \(No such file or directory\)"):
            work()


def test_a_batch_file_is_written_once(batch: AttributionBatch, tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.open(SETTINGS, [])
    write(folder, batch)
    with pytest.raises(UserError, match=r"^source: id 0, step 0, came twice in one run; give every fact an id"):
        write(folder, batch)
