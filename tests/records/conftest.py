"""The records of a small run, and the same with changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pytest
from sealed import reseal, write_batch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.location import locate
from lit_attr.records.encoding import batch_record
from lit_attr.records.folder import RunFolder
from lit_attr.records.reading import load_attributions

LAYERS = [0, 2, 7]
# At its first step the two tokens are the same.
ALIKE = {
    "prompt": "The capital of Spain is",
    "subject": "Spain",
    "target_true": "Madrid",
    "target_false": "Manila",
    "relation_id": "P36",
}


@pytest.fixture(scope="session")
def run(
    tmp_path_factory: pytest.TempPathFactory, demo_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Path:
    """The records of the demo model over a few facts, at every step of their answers, one a file."""
    folder = RunFolder(tmp_path_factory.mktemp("run") / "out")
    folder.open({"model": {"model_name": "demo", "layers": LAYERS}, "data": {}}, [])
    rows = [*islice(open_rows(SAMPLE), 5), {**ALIKE, "id": 1_000}]
    contrasts, _ = build_contrasts(read_facts(rows).facts, tokenizer, step="all")
    location = locate(demo_model, layers=LAYERS)
    for contrast in contrasts:
        scored = attribute_batch(demo_model, location, collate_contrasts([contrast]))
        folder.write_batch(batch_record(scored.to("cpu")))
    return folder.path


@pytest.fixture(scope="session")
def records(run: Path) -> list[dict[str, Any]]:
    """The records of the run."""
    records = list(load_attributions(run))
    assert {record["step"] for record in records} >= {0, 1, 2}
    assert {record["true_token_id"] == record["false_token_id"] for record in records} == {True, False}
    return records


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run of some of the records, two more than are changed; None removes a field."""

    def make(*changes: dict[str, Any]) -> Path:
        folder = tmp_path / "changed"
        (folder / "batches").mkdir(parents=True)
        shutil.copy(run / "manifest.json", folder)
        paths = sorted(run.glob("batches/*.json"))[: len(changes) + 2]
        for path, change in zip_longest(paths, changes, fillvalue={}):
            batch = json.loads(path.read_bytes())
            (example,) = batch["examples"]
            example |= {name: value for name, value in change.items() if value is not None}
            # Named before a field is removed, as it would have been written.
            written = write_batch(folder, batch)
            kept = {name: value for name, value in example.items() if change.get(name, "") is not None}
            reseal(written, partial(dict.update, examples=[kept]))
        return folder

    return make


@pytest.fixture
def relabelled(run: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], dict[str, Any]]], Path]:
    """Makes a run with other scores and another rule in every record."""

    def make(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        folder = tmp_path / "relabelled"
        shutil.copytree(run, folder)
        for path in folder.glob("batches/*.json"):
            batch = json.loads(path.read_bytes())
            for example in batch["examples"]:
                example["scores"] = change(example["scores"])
            write_batch(folder, {**batch, "rule": "other"})
        return folder

    return make
