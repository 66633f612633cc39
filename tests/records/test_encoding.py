"""A batch as JSON, and files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
import torch

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.records.encoding import batch_record, split_finite, write_bytes


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
