"""Pictures of facts and relations whose ids are alike, too long for a file, or no names at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from project import writing_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.exports.export import export

IDS = ["a/b", "a b", "a_b", "x" * 300 + "1", "x" * 300 + "2", "日" * 100, "日" * 99 + "月"]
RELATIONS = ["P/1", "P 1", "P_1", "P1", "語" * 100, "語" * 99 + "話"]


def run(folder: Path, logger: Any) -> None:
    rows = [
        {**row, "id": contrast_id, "relation_id": RELATIONS[place % len(RELATIONS)]}
        for place, (row, contrast_id) in enumerate(zip(open_rows(SAMPLE), IDS, strict=False))
    ]
    trainer = writing_trainer(folder, logger=logger)
    module = AttributionModule(verify=0)
    trainer.predict(module, datamodule=CounterfactDataModule(rows), return_predictions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a logger."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, False)
    return folder


def test_each_has_a_file_of_its_own(folder: Path):
    assert len([*(folder / "figures" / "facts").iterdir()]) == len(IDS)
    assert len([*(folder / "figures" / "relations").iterdir()]) == len(RELATIONS)
    assert max(len(path.name.encode()) for path in folder.rglob("*")) <= 255


def test_each_has_a_tag_of_its_own(tmp_path: Path):
    run(tmp_path / "out", TensorBoardLogger(str(tmp_path / "events"), name="", version=""))
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()["images"]
    assert len([tag for tag in tags if tag.startswith("facts/")]) == len(IDS)
    assert len([tag for tag in tags if tag.startswith("relations/")]) == len(RELATIONS)
    assert all(len(events.Images(tag)) == 1 for tag in tags)


def test_each_has_an_export_of_its_own(folder: Path, tmp_path: Path):
    found = [*export(folder, "inseq", tmp_path / "inseq", "layer").iterdir()]
    assert len(found) == 8 * len(IDS)
    assert max(len(path.name.encode()) for path in found) <= 255
