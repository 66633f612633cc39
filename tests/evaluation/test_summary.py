"""The summary: the same from memory and from disk, and as read by people."""

from __future__ import annotations

import itertools
from pathlib import Path

import orjson
import pytest
import torch
from transformers import PreTrainedModel

from lit_attr.attribution.gradient import AttributionBatch, attribute_batch
from lit_attr.evaluation.summary import RunSummary, describe
from lit_attr.facts.contrasts import ROLES, Contrast, collate_contrasts
from lit_attr.models.location import locate
from lit_attr.records.encoding import batch_record, write_json


@pytest.fixture
def batch(demo_model: PreTrainedModel, sample_contrasts: list[Contrast]) -> AttributionBatch:
    return attribute_batch(demo_model, locate(demo_model), collate_contrasts(sample_contrasts[::40]))


def test_counts_a_batch_file_as_the_batch_itself(batch: AttributionBatch):
    from_memory, from_disk = (RunSummary(batch.layers, "mlp", "gradient") for _ in range(2))
    from_memory.add_batch(batch)
    from_disk.add_record(orjson.loads(orjson.dumps(batch_record(batch), option=orjson.OPT_SERIALIZE_NUMPY)))
    ours, theirs = from_memory.compute(), from_disk.compute()
    for profile, means in itertools.product(("profile", "known_profile"), ("mean_score", "standard_error")):
        for mine, other in zip(ours[profile].pop(means), theirs[profile].pop(means), strict=True):
            assert mine == pytest.approx(other)
    assert ours == theirs


def test_profile_of_one_contrast_is_its_scores(batch: AttributionBatch):
    summary = RunSummary(batch.layers, "mlp", "gradient")
    summary.add_batch(batch.select([0]))
    profile = summary.compute()["profile"]
    last = len(batch.contrasts[0].tokens) - 1
    means = [row[ROLES.index("last")] for row in profile["mean_score"]]
    assert means == pytest.approx(batch.scores_sum_BLT[0, :, last].tolist())


def test_known_facts_have_a_profile_of_their_own(batch: AttributionBatch):
    rank_true_B = torch.tensor([0] + [1] * (len(batch.contrasts) - 1))
    every, first = RunSummary(batch.layers, "mlp", "gradient"), RunSummary(batch.layers, "mlp", "gradient")
    every.add_batch(batch._replace(rank_true_B=rank_true_B))
    first.add_batch(batch.select([0]))
    found, expected = every.compute()["known_profile"], first.compute()["profile"]
    assert found["contrasts"] == expected["contrasts"]
    for row, means in zip(found["mean_score"], expected["mean_score"], strict=True):
        assert row == pytest.approx(means)


def test_a_token_against_itself_is_not_counted(batch: AttributionBatch):
    same = batch.contrasts[0]._replace(false_token_id=batch.contrasts[0].true_token_id)
    summary = RunSummary(batch.layers, "mlp", "gradient")
    summary.add_batch(batch._replace(contrasts=(same, *batch.contrasts[1:])))
    assert summary.compute()["contrasts"] == len(batch.contrasts) - 1


def test_no_contrasts_are_described_as_none(tmp_path: Path):
    record = RunSummary([0], "mlp", "gradient").compute() | {"rejected": 3, "resumed": 0}
    write_json(tmp_path / "summary.json", record)
    write_json(tmp_path / "manifest.json", {"model": {}})
    told = describe(tmp_path, pictures=False)
    assert "contrasts: 0 (0 from an earlier run), rows refused: 3" in told
    assert "none to count" in told
    assert "tensorboard" not in told


@pytest.mark.parametrize(("gradient", "lines"), [({}, 0), ({"gradient": "through dequantised weights"}, 1)])
def test_says_when_the_gradient_is_approximate(tmp_path: Path, gradient: dict[str, str], lines: int):
    write_json(
        tmp_path / "summary.json", RunSummary([0], "mlp", "gradient").compute() | {"rejected": 0, "resumed": 0}
    )
    write_json(tmp_path / "manifest.json", {"model": gradient})
    told = describe(tmp_path, pictures=False)
    assert told.count("scores are approximate: the gradient is taken through dequantised weights") == lines
