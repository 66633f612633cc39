"""The declaration of the record format, and what is made from it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from jsonschema import Draft202012Validator
from project import REPOSITORY

import lit_attr
from lit_attr.attribution.faithfulness import PERCENT, RANKINGS, Curves
from lit_attr.attribution.results import AttributionBatch, ExactEffects
from lit_attr.records.encoding import batch_record, exact_record
from lit_attr.records.files import read_batch, write_sealed

ASSETS = Path(lit_attr.__file__).parent / "assets"


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((ASSETS / name).read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def written(record: Any, path: Path) -> dict[str, Any]:
    write_sealed(path, msgspec.structs.replace(record, run="a run"))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_batch_files_are_as_the_schema_says(batch: AttributionBatch, tmp_path: Path):
    schema = validator("attributions.schema.json")
    record = written(batch_record(batch), tmp_path / "batch.json")
    schema.validate(record)
    example = record["examples"][0]
    for broken in (
        {**record, "version": 1},
        {**record, "more": 1},
        {name: value for name, value in record.items() if name != "run"},
        {name: value for name, value in record.items() if name != "digest"},
        {**record, "examples": []},
        {**record, "examples": [{**example, "roles": ["subject"]}]},
        {**record, "examples": [{**example, "subject_span": [1]}]},
        {**record, "examples": [{**example, "scores": {}}]},
        {**record, "examples": [{**example, "scores": {"mlp": {"l2": example["scores"]["mlp"]["l2"]}}}]},
        {**record, "examples": [{**example, "prob_true": 1.5}]},
    ):
        assert not schema.is_valid(broken)


def test_reserved_fields_are_read_and_written(batch: AttributionBatch, tmp_path: Path):
    """They are left out where they are not set."""
    record = written(batch_record(batch), tmp_path / "batch.json")
    example = record["examples"][0]
    neuron = {"layer": 1, "token": 2, "neuron": 30, "score": 0.5}
    reserved = {"is_exact": {"mlp": [[True, False]]}, "donor_id": "other", "neurons": [neuron]}
    assert not reserved.keys() & example.keys()
    record["examples"][0] = {**example, **reserved}
    path = tmp_path / "reserved.json"
    del record["digest"]
    write_sealed(path, record)
    validator("attributions.schema.json").validate(written(read_batch(path), tmp_path / "again.json"))
    assert {name: json.loads((tmp_path / "again.json").read_text())["examples"][0][name] for name in reserved} == (
        reserved
    )


@pytest.mark.parametrize("refused", [None, "not finite"])
def test_exact_effects_are_as_the_schema_says(batch: AttributionBatch, tmp_path: Path, refused: str | None):
    curves = None if refused else Curves(torch.tensor([0.5]), *torch.rand(2, 1, len(RANKINGS), len(PERCENT)))
    contrast = batch.contrasts[0]
    effects_LT = torch.zeros(3, len(contrast.tokens))
    exact = ExactEffects(contrast, None, (0, 1, 2), ("mlp",) * 3, "zero", effects_LT, 1e-5, curves, refused)
    record = written(exact_record(exact, rule="gradient"), tmp_path / "exact.json")
    schema = validator("exact.schema.json")
    schema.validate(record)
    for broken in ({**record, "version": 1}, {**record, "more": 1}, {**record, "effects": {}}):
        assert not schema.is_valid(broken)


def test_what_is_made_from_the_declaration_is_up_to_date():
    spec = importlib.util.spec_from_file_location(
        "make_record_docs", REPOSITORY / "scripts" / "make_record_docs.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path, content in script.files().items():
        assert path.read_text(encoding="utf-8") == content, f"{path}: run scripts/make_record_docs.py"
