"""Reading an output folder back, whole and damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import lit_attr
from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import OutputFolder
from lit_attr.records.reading import load_attributions

SCHEMA = json.loads((Path(lit_attr.__file__).parent / "assets" / "attributions.schema.json").read_text())


@pytest.fixture
def folder(batch: AttributionBatch, tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "out")
    folder.open({"model": {}, "data": {}}, [])
    for row in range(2):
        folder.write_batch(batch.contrasts[row], batch_record(batch.select([row])))
    return folder


def test_records_are_what_was_written(folder: OutputFolder, batch: AttributionBatch):
    records = {record["id"]: record for record in load_attributions(folder.path)}
    assert len(records) == 2
    for row, contrast in enumerate(batch.contrasts):
        record, width = records[contrast.fact.id], len(contrast.tokens)
        assert record["layers"] == [0, 1, 2]
        assert (record["component"], record["rule"]) == ("mlp", "gradient")
        assert record["tokens"] == list(contrast.tokens)
        for kind, scores_BLT in (("sum", batch.scores_sum_BLT), ("l2", batch.scores_l2_BLT)):
            # JSON holds as many digits as a float32 needs to be known again.
            read_LT = record["scores"][kind].astype(np.float32)
            np.testing.assert_array_equal(read_LT, scores_BLT[row, :, :width].numpy())


def test_a_dataset_and_a_frame_have_a_row_a_contrast(folder: OutputFolder):
    expected = [record["id"] for record in load_attributions(str(folder.path))]
    dataset = load_attributions(folder.path, "dataset")
    frame = load_attributions(folder.path, "pandas")
    assert list(dataset["id"]) == expected
    assert list(frame["id"]) == expected
    for record, row, (_, series) in zip(load_attributions(folder.path), dataset, frame.iterrows(), strict=True):
        np.testing.assert_array_equal(np.array(row["scores"]["sum"]), record["scores"]["sum"])
        np.testing.assert_array_equal(np.array(series["scores"]["l2"]), record["scores"]["l2"])


def test_batch_files_are_as_the_schema_says(folder: OutputFolder):
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    for path in folder.batches.iterdir():
        written = json.loads(path.read_text())
        validator.validate(written)
        for broken in (
            {**written, "version": 2},
            {**written, "more": 1},
            {**written, "examples": [{**written["examples"][0], "roles": ["subject"]}]},
        ):
            assert not validator.is_valid(broken)


def _set(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *way, last = keys
        for key in way:
            record = record[key]
        record[last] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", to=2), "of format version 2, and this lit-attr knows 1; upgrade lit-attr"),
        (_set("format", to="other"), "not a file of the format lit-attr/attributions"),
        (lambda record: record.pop("layers"), "not a whole batch file .it has no 'layers'"),
        (lambda record: record["examples"][0].pop("logit_true"), "it has no 'logit_true'"),
        (_set("examples", 0, "scores", "sum", 0, 0, to=None), "has a number that is not finite"),
        (_set("examples", 0, "prob_true", to=None), "has a number that is not finite"),
        (_set("examples", 0, "scores", "l2", 1, to=[]), "not a whole batch file"),
        (lambda record: record["examples"][0]["scores"]["sum"].pop(), r"has sum scores of shape \(2, "),
        (lambda record: record["examples"][0]["roles"].pop(), r"tokens and \d+ roles"),
        (_set("examples", to=3), "not a whole batch file"),
    ],
)
def test_refuses_a_file_that_is_not_whole(folder: OutputFolder, change: Callable, message: str):
    path = min(folder.batches.iterdir())
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        list(load_attributions(folder.path))


def test_refuses_a_folder_that_is_not_one_of_ours(folder: OutputFolder, tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no manifest.json in it; give the output folder of a run"):
        load_attributions(tmp_path)
    folder.manifest.write_text('{"format": "lit-attr/manifest", "version": 3}')
    with pytest.raises(UserError, match=r"of format version 3, and this lit-attr knows 1; upgrade lit-attr"):
        load_attributions(folder.path)
