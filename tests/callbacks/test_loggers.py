"""Pictures, curves and text of a run, in event files, in other loggers and as files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import orjson
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from project import writing_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from lit_attr.callbacks.loggers import log_image
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule

ROWS = [*open_rows(SAMPLE)][::20]


def run(folder: Path, logger: Any, **writer: Any) -> dict[str, Any]:
    """Attributes some facts and returns the summary."""
    trainer = writing_trainer(folder, logger=logger, **writer)
    trainer.predict(
        AttributionModule(), datamodule=CounterfactDataModule(ROWS, batch_size=8), return_predictions=False
    )
    summary: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
    return summary


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(str(folder), name="", version="")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], EventAccumulator]:
    """The summary of a run and its event file."""
    folder = tmp_path_factory.mktemp("run")
    summary = run(folder, tensorboard(folder), max_heatmaps=2, heatmap_ids=[7, 7000])
    return summary, EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_gets_no_curve_over_layers(shown: tuple[dict[str, Any], EventAccumulator]):
    """Its step is one of training; the tab Attributions has the curves."""
    _, events = shown
    assert not [tag for tag in events.Tags()["scalars"] if "/" in tag]
    assert "custom_scalars__config__" not in events.Tags()["tensors"]


def test_other_loggers_get_one_point_per_layer(tmp_path: Path):
    """Exact effects of 16 facts, the default."""
    profile = run(tmp_path, CSVLogger(str(tmp_path), name="", version=""), max_heatmaps=0)["profile"]
    with (tmp_path / "metrics.csv").open() as stream:
        rows = [*csv.DictReader(stream)]
    curves = {
        tag: [(int(row["step"]), float(row[tag])) for row in rows if row[tag]] for tag in rows[0] if tag != "step"
    }
    for place, role in enumerate(MEAN_ROLES):
        errors = [1.96 * row[place] for row in profile["standard_error"]]
        means = [row[place] for row in profile["mean_score"]]
        for kind, sign in (("", 0), ("_low", -1), ("_high", 1)):
            steps, values = zip(*curves[f"mean_score{kind}/{role.replace(' ', '_')}"], strict=True)
            assert list(steps) == profile["layers"]
            expected = [mean + sign * error for mean, error in zip(means, errors, strict=True)]
            assert values == pytest.approx(expected, rel=1e-5)
    last = MEAN_ROLES.index("last")
    assert profile["sampled"][last] == 16
    for tag, name in (
        ("mean_effect", "mean_effect"),
        ("mean_effect_low", "interval_low"),
        ("mean_magnitude_high", "magnitude_high"),
    ):
        expected = [row[last] for row in profile[name]]
        assert [value for _, value in curves[f"{tag}/last"]] == pytest.approx(expected, rel=1e-5)


def test_page_has_the_counts_and_the_strongest_facts(shown: tuple[dict[str, Any], EventAccumulator]):
    summary, events = shown
    (event,) = events.Tensors("summary/text_summary")
    page = make_ndarray(event.tensor_proto).item().decode()
    assert f"| contrasts | {summary['contrasts']} |" in page
    assert "Strongest facts" in page
    assert page.count("\n") > 40


def test_hyperparameters_come_with_the_final_metrics(shown: tuple[dict[str, Any], EventAccumulator]):
    summary, events = shown
    plugins = events.SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(plugins.plugin_data.content)
    assert content.session_start_info.hparams["model"].string_value == "demo"
    for name in ("contrasts", "contrast_accuracy", "known_share", "median_logit_diff"):
        assert events.Scalars(name)[-1].value == pytest.approx(summary[name], rel=1e-5)


def test_requested_facts_are_drawn(shown: tuple[dict[str, Any], EventAccumulator]):
    _, events = shown
    facts = [tag for tag in events.Tags()["images"] if tag.startswith("facts/")]
    assert "facts/7-0" in facts
    assert len(facts) in (2, 3)  # 7 may be one of the first two in the random order


def test_facts_with_the_largest_logit_differences_are_drawn(tmp_path: Path):
    run(tmp_path, False, max_heatmaps=3, heatmaps="largest")
    records = [
        example
        for path in tmp_path.glob("batches/*.json")
        for example in orjson.loads(path.read_bytes())["examples"]
    ]
    largest = sorted(records, key=lambda example: -abs(example["logit_diff"]))[:3]
    found = {path.name for path in (tmp_path / "figures" / "facts").iterdir()}
    assert found == {f"{example['id']}-0.png" for example in largest}


def test_pictures_are_files_without_an_image_logger(tmp_path: Path):
    run(tmp_path, CSVLogger(str(tmp_path), name="", version=""), max_heatmaps=2)
    figures = {path.relative_to(tmp_path / "figures") for path in tmp_path.rglob("*.png")}
    assert len([path for path in figures if path.parts[0] == "facts"]) == 2
    assert {Path("averages/role_by_layer.png"), Path("averages/role_by_layer_known.png")} <= figures
    for path in tmp_path.rglob("*.png"):
        Image.open(path).verify()
    with (tmp_path / "metrics.csv").open() as stream:
        assert len([row for row in csv.DictReader(stream) if row["mean_score/last"]]) == 8


def test_each_of_several_loggers_gets_what_it_supports(tmp_path: Path):
    loggers = [tensorboard(tmp_path / "board"), CSVLogger(str(tmp_path / "csv"), name="", version="")]
    run(tmp_path / "out", loggers, max_heatmaps=1)
    assert not (tmp_path / "out" / "figures").exists()
    assert (tmp_path / "csv" / "metrics.csv").exists()
    assert [*(tmp_path / "board").glob("events.*")]


def test_weights_and_biases_gets_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(project="lit-attr", offline=True, save_dir=tmp_path)
    run(tmp_path / "out", logger, max_heatmaps=1)
    logger.experiment.finish()
    pictures = [*(tmp_path / "wandb" / "latest-run").rglob("*.png")]
    assert {path.parent.name for path in pictures} >= {"facts", "averages"}
    assert not (tmp_path / "out" / "figures").exists()


def test_mlflow_gets_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run(tmp_path / "out", MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}"), max_heatmaps=1)
    pictures = [*(tmp_path / "mlruns").rglob("*.png")]
    assert {path.parent.name for path in pictures} >= {"facts", "averages"}
    assert not (tmp_path / "out" / "figures").exists()


def test_another_kind_of_logger_needs_one_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Kept(CSVLogger):
        pass

    taken = []
    adapters: dict[type[Logger], Any] = {Kept: lambda _, tag, image, step: taken.append((tag, image.size, step))}
    monkeypatch.setattr("lit_attr.callbacks.loggers.IMAGE_LOGGERS", adapters)
    trainer = pl.Trainer(accelerator="cpu", logger=Kept(str(tmp_path)))
    log_image(trainer, tmp_path / "figures", "a/b", Image.new("RGB", (3, 2)), 5)
    assert taken == [("a/b", (3, 2), 5)]
    assert not (tmp_path / "figures").exists()
