"""Files on disk, read back by others."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import orjson
import pytest
import torch
from transformers import GPT2LMHeadModel

from lit_attr.attribution import AttributionBatch, attribute_batch
from lit_attr.contrasts import Contrast, collate_contrasts
from lit_attr.errors import UserError
from lit_attr.facts import Rejected
from lit_attr.folder import OutputFolder
from lit_attr.locate import locate
from lit_attr.records import batch_record, split_finite, write_bytes

SETTINGS = {"model": {"dtype": "float32", "layers": [0, 1]}, "data": {"content": "abc"}}


@pytest.fixture
def batch(random_model: GPT2LMHeadModel, sample_contrasts: list[Contrast]) -> AttributionBatch:
    contrasts = [sample_contrasts[0], sample_contrasts[-1]]
    return attribute_batch(random_model, locate(random_model), collate_contrasts(contrasts))


def test_a_record_is_as_the_format_says(batch: AttributionBatch):
    record = json.loads(orjson.dumps(batch_record(batch), option=orjson.OPT_SERIALIZE_NUMPY))
    assert {name: record[name] for name in ("format", "version", "layers", "component", "rule")} == {
        "format": "lit-attr/attributions",
        "version": 1,
        "layers": [0, 1, 2],
        "component": "mlp",
        "rule": "gradient",
    }
    names = "id relation_id prompt subject target_true target_false step tokens roles subject_span true_token "
    names += "false_token true_token_id false_token_id logit_true logit_false logit_diff prob_true prob_false "
    names += "rank_true scores"
    for row, (example, contrast) in enumerate(zip(record["examples"], batch.contrasts, strict=True)):
        assert list(example) == names.split()
        assert example["id"] == contrast.fact.id
        assert example["logit_diff"] == pytest.approx(example["logit_true"] - example["logit_false"])
        width = len(contrast.tokens)
        assert len(example["tokens"]) == len(example["roles"]) == width
        for kind, scores_BLT in (("sum", batch.scores_sum_BLT), ("l2", batch.scores_l2_BLT)):
            assert torch.equal(torch.tensor(example["scores"][kind]), scores_BLT[row, :, :width])


def test_datasets_loads_the_folder_as_it_is(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    for row in range(2):
        folder.write_batch(batch.select([row]))
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "out" / "batches" / "*.json"),
        field="examples",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert sorted(loaded["id"]) == sorted(contrast.fact.id for contrast in batch.contrasts)
    assert len(loaded[0]["scores"]["sum"]) == 3


def test_only_finite_numbers_are_recorded(batch: AttributionBatch):
    batch.scores_sum_BLT[1, 0, 0] = torch.nan
    finite, rejected = split_finite(batch)
    assert finite.contrasts == batch.contrasts[:1]
    assert finite.scores_l2_BLT.shape[0] == 1
    assert rejected[0].id == batch.contrasts[1].fact.id
    assert "a score or logit is not finite; model.dtype bfloat16" in rejected[0].reason
    batch.prob_true_B[0] = torch.nan
    finite, rejected = split_finite(batch)
    assert not finite.contrasts
    assert len(rejected) == 2


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def fail(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"new")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("a.json", b"old")]


def test_ids_never_become_paths(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path / "out")
    folder.open(SETTINGS, [])
    first = batch.contrasts[0]
    evil = first._replace(fact=first.fact._replace(id="../../etc/passwd"))
    folder.write_batch(batch.select([0])._replace(contrasts=(evil,)))
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
    folder.manifest.write_text('{"version": 2}')
    with pytest.raises(UserError, match="is of format version 2, this lit-attr writes 1"):
        folder.check(SETTINGS)
    folder.manifest.write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is not JSON .*move it away"):
        folder.check(SETTINGS)


def test_moves_aside_only_what_it_knows(batch: AttributionBatch, tmp_path: Path):
    folder = OutputFolder(tmp_path)
    folder.open(SETTINGS, [])
    folder.write_batch(batch)
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
