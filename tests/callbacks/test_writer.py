"""The writer under real Trainers, its files and event files read back."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from project import writing_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel

from lit_attr.attribution.results import AttributionBatch
from lit_attr.callbacks.writer import AttributionWriter, _layer_by_layer
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.contrasts import Contrast, random_order
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.module import AttributionModule

ROWS = [*open_rows(SAMPLE)][::11]


def run(
    folder: Path,
    *,
    logger: Any = False,
    rows: list[Any] = ROWS,
    module: dict[str, Any] | None = None,
    **writer: Any,
) -> AttributionWriter:
    trainer = writing_trainer(folder, logger=logger, **writer)
    data = CounterfactDataModule(rows, batch_size=8)
    trainer.predict(AttributionModule(**(module or {})), datamodule=data, return_predictions=False)
    (callback,) = (each for each in trainer.callbacks if isinstance(each, AttributionWriter))
    return callback


def examples(folder: Path) -> list[dict[str, Any]]:
    return [
        example for path in folder.glob("batches/*.json") for example in json.loads(path.read_text())["examples"]
    ]


def images(folder: Path) -> dict[str, np.ndarray]:
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {
        tag: np.asarray(Image.open(io.BytesIO(accumulator.Images(tag)[0].encoded_image_string)))
        for tag in accumulator.Tags()["images"]
    }


def test_every_fact_has_one_record(tmp_path: Path):
    run(tmp_path)
    assert sorted(example["id"] for example in examples(tmp_path)) == list(range(len(ROWS)))
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "batches",
        "exact",
        "figures",
        "manifest.json",
        "rejected.jsonl",
        "shown.json",
        "summary.json",
    }
    summary = json.loads((tmp_path / "summary.json").read_text())
    preferred = [example["logit_true"] > example["logit_false"] for example in examples(tmp_path)]
    assert summary["contrasts"] == len(ROWS)
    assert summary["contrast_accuracy"] == sum(preferred) / len(ROWS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["model"]["dtype"] == "float32"
    assert manifest["data"]["contrasts"] == len(ROWS)
    assert manifest["libraries"]["torch"].startswith("2.")


def test_a_second_run_adds_what_is_missing(tmp_path: Path):
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("batches/*.json")}
    summary = json.loads((tmp_path / "summary.json").read_text())
    lost, *kept = sorted(before)
    lost.unlink()
    writer = run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == {path: before[path] for path in kept}
    assert sorted(example["id"] for example in examples(tmp_path)) == list(range(len(ROWS)))
    again = json.loads((tmp_path / "summary.json").read_text())
    assert writer.resumed == sum(len(json.loads(path.read_text())["examples"]) for path in kept)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_a_run_of_a_finished_folder_restores_the_summary(tmp_path: Path):
    run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").unlink()
    assert run(tmp_path).resumed == len(ROWS)
    again = json.loads((tmp_path / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_another_setting_is_refused_and_overwrite_moves_aside(tmp_path: Path):
    run(tmp_path)
    with pytest.raises(UserError, match=r"was written with model.component 'mlp', this run has 'attention'"):
        run(tmp_path, module={"component": "attention"})
    run(tmp_path, module={"component": "attention"}, overwrite=True)
    assert len(examples(tmp_path)) == len(ROWS)
    (aside,) = tmp_path.glob("replaced-*")
    assert len(examples(aside)) == len(ROWS)


def test_heatmaps_are_in_the_event_file(tmp_path: Path):
    run(tmp_path, logger=TensorBoardLogger(str(tmp_path), name="", version=""), max_heatmaps=6)
    found = images(tmp_path)
    facts = {tag for tag in found if tag.startswith("facts/")}
    assert len(facts) == 6
    others = set(found) - facts
    relations = {tag for tag in others if tag.startswith("relations/")}
    assert others - relations == {
        "averages/role_by_layer",
        "averages/role_by_layer_magnitude",
        "averages/role_by_layer_known",
        "exact_effects/agreement",
    }
    counts = Counter(row["relation_id"] for row in ROWS)
    assert {tag.removeprefix("relations/") for tag in relations} <= set(counts)
    assert len(relations) == 6
    for pixels in found.values():
        assert pixels.shape[0] > 200
        assert pixels.shape[1] >= 480
        assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 20


@pytest.mark.parametrize("rows", [len(ROWS), 3])
def test_heatmaps_are_of_the_first_facts_in_the_random_order(tmp_path: Path, rows: int):
    run(tmp_path, rows=ROWS[:rows], module={"verify": 0, "sample_seed": 7}, max_heatmaps=5)
    order = random_order([(example["id"], example["step"]) for example in examples(tmp_path)], 7)
    drawn = {path.stem for path in (tmp_path / "figures" / "facts").iterdir()}
    assert drawn == {f"{fact_id}-{step}" for fact_id, step in order[:5]}
    assert len(drawn) == min(rows, 5)


@pytest.mark.parametrize("logger", ["none", "csv", "both"])
def test_runs_with_any_logger(tmp_path: Path, logger: str):
    loggers = {"none": False, "csv": CSVLogger(str(tmp_path / "csv"))}
    loggers["both"] = [loggers["csv"], TensorBoardLogger(str(tmp_path / "tensorboard"), name="", version="")]
    run(tmp_path / "out", logger=loggers[logger])
    assert len(examples(tmp_path / "out")) == len(ROWS)
    assert (tmp_path / "tensorboard").exists() == (logger == "both")


def test_refused_rows_are_on_disk(tmp_path: Path):
    run(tmp_path, rows=[*ROWS, {**ROWS[0], "subject": None}])
    (line,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"row": len(ROWS), "id": len(ROWS), "reason": "'subject' is missing"}
    assert json.loads((tmp_path / "summary.json").read_text())["rejected"] == 1


def test_every_step_has_a_record(tmp_path: Path):
    run(tmp_path, module={"step": "all"})
    keys = [(example["id"], example["step"]) for example in examples(tmp_path)]
    assert len(keys) == len(set(keys)) > len(ROWS)
    assert {fact_id for fact_id, _ in keys} == set(range(len(ROWS)))


def test_a_data_module_yields_all_facts_again_without_the_writer(tmp_path: Path):
    data = CounterfactDataModule(ROWS)
    for _ in range(2):
        trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[AttributionWriter(str(tmp_path))])
        trainer.predict(AttributionModule(), datamodule=data, return_predictions=False)
    batches = pl.Trainer(accelerator="cpu", logger=False).predict(AttributionModule(), datamodule=data)
    assert sum(len(batch.contrasts) for batch in batches) == len(ROWS)


def test_a_repeated_id_stops_the_run(tmp_path: Path, sample_contrasts: list[Contrast]):
    loader = DataLoader([sample_contrasts[0]] * 2, collate_fn=collate_contrasts)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[AttributionWriter(str(tmp_path))])
    with pytest.raises(UserError, match=r"^data.source: id 0, step 0, came twice in one run; give every fact"):
        trainer.predict(AttributionModule(), loader)
    assert len(examples(tmp_path)) == 1


def test_a_run_of_another_loader_resumes_as_well(tmp_path: Path, sample_contrasts: list[Contrast]):
    for contrasts in (sample_contrasts[:3], sample_contrasts[:5]):
        loader = DataLoader(contrasts, batch_size=2, collate_fn=collate_contrasts)
        writer = AttributionWriter(str(tmp_path))
        trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[writer])
        trainer.predict(AttributionModule(), loader)
    assert sorted(example["id"] for example in examples(tmp_path)) == [0, 1, 2, 3, 4]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["contrasts"], writer.resumed) == (5, 3)


def test_contrasts_with_non_finite_numbers_are_refused_and_the_run_continues(
    tmp_path: Path, random_model: GPT2LMHeadModel
):
    # Of all tokens but the first ones, which the self-test runs over; the unembedding stays as it is.
    random_model.lm_head.weight = torch.nn.Parameter(random_model.lm_head.weight.detach().clone())
    with torch.no_grad():
        random_model.transformer.wte.weight[20:] = torch.nan
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[AttributionWriter(str(tmp_path))])
    data = CounterfactDataModule(ROWS, DEMO_MODEL)
    trainer.predict(AttributionModule(model=random_model), datamodule=data, return_predictions=False)
    assert examples(tmp_path) == []
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["contrasts"], summary["rejected"]) == (0, len(ROWS))


class WatchedBatch(AttributionBatch):
    """Notes in which thread it is copied, and waited for."""

    threads: ClassVar[list[tuple[str, str]]] = []

    def begin_copy(self) -> Callable[[], AttributionBatch]:
        self.threads.append(("begun", threading.current_thread().name))
        wait = super().begin_copy()

        def waiting() -> AttributionBatch:
            self.threads.append(("waited for", threading.current_thread().name))
            return wait()

        return waiting


class WatchedModule(AttributionModule):
    def predict_step(self, *args: Any) -> WatchedBatch:
        return WatchedBatch(*super().predict_step(*args))


def test_a_batch_is_waited_for_in_the_writers_thread(tmp_path: Path):
    WatchedBatch.threads.clear()
    writing_trainer(tmp_path).predict(
        WatchedModule(verify=0), datamodule=CounterfactDataModule(ROWS, batch_size=8), return_predictions=False
    )
    assert Counter(WatchedBatch.threads) == {
        ("begun", "MainThread"): (batches := -(-len(ROWS) // 8)),
        ("waited for", "lit-attr_0"): batches,
    }
    assert len(examples(tmp_path)) == len(ROWS)


class FailedDevice(AttributionBatch):
    def begin_copy(self) -> Callable[[], AttributionBatch]:
        def wait() -> AttributionBatch:
            raise RuntimeError("the device has failed")

        return wait


class ModuleOnFailedDevice(AttributionModule):
    def predict_step(self, batch: ContrastBatch, batch_idx: int) -> FailedDevice:
        if batch_idx == 1:
            raise RuntimeError("the device has failed in a pass")
        return FailedDevice(*super().predict_step(batch, batch_idx))


def test_a_run_ends_with_the_first_failure_of_a_device(tmp_path: Path):
    """Lightning's hooks for exceptions run to their end: the next run can lock the folder."""
    trainer = writing_trainer(tmp_path)
    data = CounterfactDataModule(ROWS, batch_size=8)
    with pytest.raises(RuntimeError, match="the device has failed in a pass"):
        trainer.predict(ModuleOnFailedDevice(verify=0), datamodule=data, return_predictions=False)
    run(tmp_path, module={"verify": 0})
    assert len(examples(tmp_path)) == len(ROWS)


class StrangersModule(pl.LightningModule):
    def predict_step(self, batch: Any, batch_idx: int) -> int:
        return 3


def test_refuses_predictions_of_another_type(tmp_path: Path):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, callbacks=[AttributionWriter(str(tmp_path))], enable_progress_bar=False
    )
    with pytest.raises(UserError, match="StrangersModule's predict_step returns int"):
        trainer.predict(StrangersModule(), [1, 2])


def test_nothing_is_created_before_a_run_can_start(tmp_path: Path):
    with pytest.raises(UserError, match="there is no layer 99"):
        run(tmp_path / "out", module={"layers": [99]})
    assert not (tmp_path / "out").exists()


def test_the_pilots_effects_are_layer_by_layer():
    """As a location of several components has its modules."""
    effects = {"mlp": np.array([[1.0, 2], [5, 6], [9, 10]]), "attention": np.array([[3.0, 4], [7, 8], [11, 12]])}
    assert _layer_by_layer(effects).tolist() == [[each, each + 1] for each in range(1, 12, 2)]
    assert _layer_by_layer({"mlp": effects["mlp"]}).tolist() == effects["mlp"].tolist()
