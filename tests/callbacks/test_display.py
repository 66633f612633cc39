"""What a later run of a finished folder shows: the pictures that are missing, and no other."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from project import writing_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.attribution.neurons import find_neurons
from lit_attr.attribution.results import AttributionBatch
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.reading import load_attributions
from lit_attr.text import safe_name

ROWS = [*open_rows(SAMPLE)][::40]
PICTURES = {"exact_effects/agreement", "averages/role_by_layer", "averages/role_by_layer_known"}


def run(folder: Path, version: str = "", **writer: object) -> None:
    """Attributes the rows, with the event files in a folder of this name."""
    logger = TensorBoardLogger(str(folder / "events"), name="", version=version)
    trainer = writing_trainer(folder / "out", logger=logger, max_heatmaps=2, **writer)
    data = CounterfactDataModule(ROWS, batch_size=8)
    trainer.predict(AttributionModule(verify=2), datamodule=data, return_predictions=False)


def sent(folder: Path, kind: str = "images") -> Counter[str]:
    """How often each picture (or scalar, or text) was sent, in all event files of a folder."""
    found: Counter[str] = Counter()
    for path in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(path), size_guidance={kind: 0}).Reload()
        read = {"images": events.Images, "scalars": events.Scalars, "tensors": events.Tensors}[kind]
        for tag in events.Tags()[kind]:
            found[tag] += len(read(tag))
    return found


def facts(pictures: Counter[str]) -> set[str]:
    return {tag for tag in pictures if tag.startswith("facts/")}


ALL_KINDS = ("images", "scalars", "tensors")


@pytest.mark.parametrize("version", ["first", "second"])
def test_a_second_run_sends_nothing_again(tmp_path: Path, version: str):
    """Whether its event files are in the folder of the first run's or in a folder of their own."""
    run(tmp_path, "first")
    before = {kind: sent(tmp_path, kind) for kind in ALL_KINDS}
    assert set(before["images"]) >= {*PICTURES, *facts(before["images"])}
    assert len(facts(before["images"])) == 2
    assert set(before["images"].values()) == {1}
    run(tmp_path, version)
    assert {kind: sent(tmp_path, kind) for kind in ALL_KINDS} == before


@pytest.mark.parametrize("version", ["first", "second"])
def test_a_deleted_event_folder_is_shown_again(tmp_path: Path, version: str):
    """Pictures, curves and pages, once: a third run finds them."""
    run(tmp_path, "first")
    before = {kind: sent(tmp_path, kind) for kind in ALL_KINDS}
    shutil.rmtree(tmp_path / "events" / "first")
    for _ in range(2):
        run(tmp_path, version)
        assert {kind: sent(tmp_path, kind) for kind in ALL_KINDS} == before


@pytest.mark.parametrize("version", ["first", "second"])
def test_a_requested_fact_adds_just_its_picture(tmp_path: Path, version: str):
    run(tmp_path, "first")
    before = {kind: sent(tmp_path, kind) for kind in ALL_KINDS}
    (new, *_) = sorted({f"facts/{row}-0" for row in range(len(ROWS))} - facts(before["images"]))
    before["images"][new] += 1
    # The third run finds what the first two have sent.
    for _ in range(2):
        run(tmp_path, version, heatmap_ids=[int(new.removeprefix("facts/").removesuffix("-0"))])
        assert {kind: sent(tmp_path, kind) for kind in ALL_KINDS} == before


def test_pictures_in_files_are_not_drawn_again(tmp_path: Path):
    """A deleted one is."""
    for place in range(3):
        writing = writing_trainer(tmp_path, max_heatmaps=2)
        data = CounterfactDataModule(ROWS, batch_size=8)
        writing.predict(AttributionModule(verify=2), datamodule=data, return_predictions=False)
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
        if place == 0:
            first = times
            lost = tmp_path / "figures" / "exact_effects" / "agreement.png"
            lost.unlink()
        else:
            assert {path for path in times if times[path] != first[path]} == {lost}
            assert times.keys() == first.keys()


class WithNeurons(AttributionModule):
    """A module whose batches have the top neurons."""

    def predict_step(self, batch: ContrastBatch, batch_idx: int, dataloader_idx: int = 0) -> AttributionBatch:
        scored = super().predict_step(batch, batch_idx, dataloader_idx)
        model, location = self.language_model, self.location
        assert model is not None and location is not None
        found = attribute_batch(model, location, batch, top_neurons=find_neurons(model, location, 5))
        return scored._replace(neurons=found.neurons)


def test_neurons_have_a_page_in_tensorboard(tmp_path: Path):
    data = CounterfactDataModule(ROWS, batch_size=8)
    logger = TensorBoardLogger(str(tmp_path / "events"), name="")
    trainer = writing_trainer(tmp_path / "out", logger=logger)
    trainer.predict(WithNeurons(verify=0), datamodule=data, return_predictions=False)
    assert sent(tmp_path, "tensors")["neurons/text_summary"] == 1
    run(tmp_path / "without")
    assert "neurons/text_summary" not in sent(tmp_path / "without", "tensors")
    records = [*load_attributions(tmp_path / "out")]
    assert records and all(len(record["neurons"]) == 5 for record in records)


def test_each_component_has_its_pictures(tmp_path: Path):
    """Also a path with braces, whose names every file system takes; a second run draws none again."""
    path = "transformer.h.{layer}.attn"
    logger = CSVLogger(str(tmp_path), name="", version="")

    def predict() -> dict[str, int]:
        trainer = writing_trainer(tmp_path / "out", logger=logger, max_heatmaps=1)
        module = AttributionModule(component=["mlp", path], verify=2)
        trainer.predict(module, datamodule=CounterfactDataModule(ROWS, batch_size=8), return_predictions=False)
        figures = tmp_path / "out" / "figures"
        files = figures.rglob("*.png")
        return {each.relative_to(figures).with_suffix("").as_posix(): each.stat().st_mtime_ns for each in files}

    found = predict()
    ending = f"_{safe_name(path)}"
    both = {tag + end for tag in PICTURES for end in ("", ending)}
    assert {tag for tag in found if not tag.startswith(("facts/", "relations"))} == {*both, "averages/components"}
    assert predict() == found
    curves = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    for curve in ("mean_score", "agreement", "mean_score_known"):
        assert {f"{curve}{end}" for end in ("", ending)} <= {name.split("/")[0] for name in curves}
