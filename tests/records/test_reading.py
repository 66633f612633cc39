"""Reading a run's records back, whole and damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_attr.attribution.results import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import RunFolder
from lit_attr.records.reading import load_attributions


@pytest.fixture
def folder(batch: AttributionBatch, tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "out")
    folder.open({"model": {}, "data": {}}, [])
    for row in range(2):
        folder.write_batch(batch_record(batch.select([row])))
    return folder


def test_records_are_what_was_written(folder: RunFolder, batch: AttributionBatch):
    records = {record["id"]: record for record in load_attributions(folder.path)}
    assert len(records) == 2
    for row, contrast in enumerate(batch.contrasts):
        record, width = records[contrast.fact.id], len(contrast.tokens)
        assert (record["layers"], record["rule"]) == ([0, 1, 2], "gradient")
        assert list(record["scores"]) == ["mlp"]
        assert record["tokens"] == list(contrast.tokens)
        for kind, scores_BLT in (("sum", batch.scores_sum_BLT), ("l2", batch.scores_l2_BLT)):
            # JSON holds as many digits as a float32 needs to be read back exactly.
            read_LT = record["scores"]["mlp"][kind].astype(np.float32)
            np.testing.assert_array_equal(read_LT, scores_BLT[row, :, :width].numpy())


def test_a_dataset_and_a_frame_have_a_row_a_contrast(folder: RunFolder):
    expected = [record["id"] for record in load_attributions(str(folder.path))]
    dataset = load_attributions(folder.path, "dataset")
    frame = load_attributions(folder.path, "pandas")
    assert list(dataset["id"]) == expected
    assert list(frame["id"]) == expected
    for record, row, (_, series) in zip(load_attributions(folder.path), dataset, frame.iterrows(), strict=True):
        np.testing.assert_array_equal(np.array(row["scores"]["mlp"]["sum"]), record["scores"]["mlp"]["sum"])
        np.testing.assert_array_equal(np.array(series["scores"]["mlp"]["l2"]), record["scores"]["mlp"]["l2"])


def test_reading_needs_no_torch(folder: RunFolder):
    program = (
        "import sys; from lit_attr.records.reading import load_attributions; "
        f"assert len(list(load_attributions({str(folder.path)!r}))) == 2; "
        "assert not {'torch', 'transformers', 'lightning', 'datasets', 'pandas'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _set(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        *way, last = keys
        for key in way:
            record = record[key]
        record[last] = to

    return change


SCORES = ("examples", 0, "scores", "mlp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", to=3), "of format version 3, and this lit-attr knows 2; upgrade lit-attr"),
        (_set("version", to=1), "of format version 1, and this lit-attr reads only 2; give another folder"),
        (_set("format", to="other"), "not a file of the format lit-attr/attributions"),
        (lambda record: record.pop("layers"), "not a whole file .*missing required field `layers`"),
        (lambda record: record["examples"][0].pop("logit_true"), "missing required field `logit_true`"),
        (_set(*SCORES, "sum", 0, 0, to=None), "a number is not finite"),
        (_set("examples", 0, "prob_true", to=None), r"got `null` - at `\$.examples.*prob_true`"),
        (_set(*SCORES, "l2", 1, to=[]), "not a whole file"),
        (_set(*SCORES, "l2", to=[[1.0]]), r"has mlp l2 scores of shape \(1, 1\), not \(3, "),
        (lambda record: record["examples"][0]["scores"]["mlp"]["sum"].pop(), r"has mlp sum scores of shape \(2, "),
        (lambda record: record["examples"][0]["roles"].pop(), r"tokens and \d+ roles"),
        (_set("examples", 0, "subject_span", to=[2, 2]), "its subject at 2 to 2"),
        (_set("examples", 0, "subject_span", to=[0, 99]), "its subject at 0 to 99"),
        (_set("examples", to=3), "not a whole file"),
    ],
)
def test_refuses_a_file_that_is_not_whole(folder: RunFolder, change: Callable, message: str):
    path = min(folder.batches.iterdir())
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        list(load_attributions(folder.path))


def test_refuses_a_file_that_cannot_be_read(folder: RunFolder):
    path = min(folder.batches.iterdir())
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"{path}: it cannot be read \(Is a directory\); run again$"):
        list(load_attributions(folder.path))


def test_refuses_a_folder_of_something_else(folder: RunFolder, tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no manifest.json in it; give the output folder of a run"):
        load_attributions(tmp_path)
    folder.manifest.write_text('{"format": "lit-attr/manifest", "version": 3}')
    with pytest.raises(UserError, match=r"of format version 3, and this lit-attr knows 2; upgrade lit-attr"):
        load_attributions(folder.path)
