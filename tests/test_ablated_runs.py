"""Runs with an ablation, several components, neurons, known facts alone: after kills, and in two processes."""

from __future__ import annotations

import hashlib
import json
import signal
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import writing_trainer
from runs import CPU, finish, launch, start, wait_until
from safetensors.numpy import load_file, save_file

from lit_attr.attribution.catalogue import AblationOptions
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.module import AttributionModule
from lit_attr.records.reading import load_attributions

ROWS, VERIFIED = 48, 4
BOTH = ["mlp", "attention"]


def run(folder: Path, limit: int = ROWS, **settings: Any) -> Path:
    trainer = writing_trainer(folder, max_heatmaps=0)
    module = AttributionModule(**{"verify": 0, **settings})
    data = CounterfactDataModule(limit=limit, batch_size=8)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return folder


def command(folder: Path, ablation: str, *words: object) -> list[str]:
    settings = {
        "data.limit": ROWS,
        "data.batch_size": 8,
        "model.ablation": ablation,
        "model.ablation_options.mean_contrasts": 20,
        "model.component": "[mlp, attention]",
        "model.top_neurons": 3,
        "model.only": "known",
        "model.verify": VERIFIED,
        "writer.output_dir": folder,
        "writer.max_heatmaps": 0,
        "trainer.logger": "false",
    }
    flags = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return ["predict", *flags, *CPU, *map(str, words)]


def has_come_to(folder: Path, count: int, process: ForkServerProcess) -> bool:
    """Whether a run has written so many records, or has ended."""
    is_there = len([*folder.glob("*/*.json")]) >= count and (folder / "screened.jsonl").exists()
    return is_there or not process.is_alive()


def records(folder: Path) -> dict[int, dict[str, Any]]:
    return {record["id"]: record for record in load_attributions(folder)}


def files(folder: Path) -> dict[str, bytes]:
    """What a run has written beside its manifest, byte for byte."""
    paths = [*folder.glob("*/*.json"), *folder.glob("*.safetensors"), folder / "screened.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_killed_runs_give_the_records_of_an_uninterrupted_one(ablation: str, tmp_path: Path):
    assert finish(start(command(tmp_path / "whole", ablation), tmp_path / "log")) == 0
    expected, folder = files(tmp_path / "whole"), tmp_path / "killed"
    exits = []
    for count in (0, 3, 6):
        process = start(command(folder, ablation), tmp_path / "log")
        wait_until(partial(has_come_to, folder, count, process))
        process.kill()
        finish(process)
        exits.append(process.exitcode)
    assert finish(start(command(folder, ablation), tmp_path / "log")) == 0
    assert files(folder) == expected
    assert exits[:2] == [-signal.SIGKILL] * 2
    examples = records(folder)
    assert all(set(each["scores"]) == {*BOTH} and len(each["neurons"]) == 3 for each in examples.values())
    assert all(("donor_id" in each) == (ablation == "resample") for each in examples.values())


@pytest.mark.parametrize("ablation", ["mean", pytest.param("resample", marks=pytest.mark.slow)])
def test_two_processes_give_the_records_of_one(ablation: str, tmp_path: Path):
    assert finish(start(command(tmp_path / "one", ablation), tmp_path / "log")) == 0
    words = command(tmp_path / "two", ablation, "--trainer.strategy", "ddp", "--trainer.devices", 2)
    with launch(["-m", "lit_attr", *words], tmp_path / "log") as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert one.keys() == two.keys()
    for identity, record in one.items():
        for component in BOTH:
            np.testing.assert_array_equal(
                two[identity]["scores"][component]["sum"], record["scores"][component]["sum"]
            )
        assert two[identity]["neurons"] == record["neurons"]
        assert two[identity].get("donor_id") == record.get("donor_id")
    assert (tmp_path / "one" / "screened.jsonl").read_bytes() == (tmp_path / "two" / "screened.jsonl").read_bytes()


def test_means_are_kept_and_can_be_given_to_another_run(tmp_path: Path):
    options = AblationOptions(mean_contrasts=20)
    kept = run(tmp_path / "kept", ablation="mean", ablation_options=options, component=BOTH)
    path = kept / "mean_writes.safetensors"
    manifest = json.loads((kept / "manifest.json").read_bytes())
    assert manifest["mean_writes"] == hashlib.sha256(path.read_bytes()).hexdigest()
    means = load_file(path)
    assert {*means} == {"mlp", "mlp.position_0", "attention", "attention.position_0"}
    assert {mean_LH.shape for mean_LH in means.values()} == {(8, 192)} or len(
        {m.shape for m in means.values()}
    ) == 1
    given = AblationOptions(mean_writes=str(path))
    again = records(run(tmp_path / "given", ablation="mean", ablation_options=given, layers=[0, 2]))
    for identity, record in records(kept).items():
        np.testing.assert_allclose(
            again[identity]["scores"]["mlp"]["sum"], record["scores"]["mlp"]["sum"][[0, 2]], rtol=1e-5, atol=1e-6
        )
    run(kept, ablation="mean", ablation_options=options, component=BOTH)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match=r"mean_writes.safetensors: it is not the file that the run began with"):
        run(kept, limit=ROWS + 2, ablation="mean", ablation_options=options, component=BOTH)
    path.unlink()
    with pytest.raises(UserError, match=r"mean_writes.safetensors: it is gone, and the scores on disk were"):
        run(kept, limit=ROWS + 2, ablation="mean", ablation_options=options, component=BOTH)


def test_files_of_means_that_do_not_fit_are_refused_in_one_line(tmp_path: Path):
    width = AttributionModule(verify=0)
    width.configure_model()
    hidden = width.language_model.config.hidden_size
    layers = width.language_model.config.num_hidden_layers
    fitting = np.zeros((layers, hidden), dtype=np.float32)
    for place, (tensors, message) in enumerate(
        (
            ({"mlp": fitting}, r"means.safetensors lacks the tensor 'mlp.position_0', layers × width; add it$"),
            (
                {"mlp": fitting[:3], "mlp.position_0": fitting},
                r"'mlp' has the shape \[3, \d+\], not a row for each of",
            ),
            ({"mlp": fitting * np.nan, "mlp.position_0": fitting}, r"'mlp' has numbers that are not finite; give"),
        )
    ):
        save_file(tensors, tmp_path / "means.safetensors")
        options = AblationOptions(mean_writes=str(tmp_path / "means.safetensors"))
        with pytest.raises(UserError, match=r"^model.ablation_options.mean_writes: .*" + message):
            run(tmp_path / str(place), 4, ablation="mean", ablation_options=options)
    (tmp_path / "means.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="is not a safetensors file that can be read"):
        run(tmp_path / "other", 4, ablation="mean", ablation_options=options)


def test_known_facts_alone_have_the_records_of_a_filtered_run(tmp_path: Path):
    everything = records(run(tmp_path / "all", 200, layers=[0, 7]))
    known = records(run(tmp_path / "known", 200, layers=[0, 7], only="known", verify=VERIFIED))
    assert known.keys() == {identity for identity, record in everything.items() if record["rank_true"] == 0}
    assert 0 < len(known) < len(everything)
    for identity, record in known.items():
        np.testing.assert_allclose(
            record["scores"]["mlp"]["sum"], everything[identity]["scores"]["mlp"]["sum"], rtol=1e-4, atol=1e-5
        )
    lines = [json.loads(line) for line in (tmp_path / "known" / "screened.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == sorted(everything)
    for line in lines:
        record = everything[line["id"]]
        assert (line["rank_true"], line["is_kept"]) == (record["rank_true"], record["rank_true"] == 0)
        assert line["logit_diff"] == pytest.approx(record["logit_diff"], abs=1e-4)
    sampled = [json.loads(path.read_bytes())["id"] for path in (tmp_path / "known").glob("exact/*.json")]
    assert len(sampled) == VERIFIED and {*sampled} <= known.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ablation": "noise"}, r"^model.ablation: 'noise' is not one of zero, mean, resample"),
        ({"only": "right"}, r"^model.only: 'right' is not one of all, known, preferred"),
        ({"component": []}, r"^model.component: the list is empty; name one, such as mlp$"),
        ({"component": ["mlp", "mlp"]}, r"^model.component: mlp is named twice; name it once$"),
        (
            {"ablation_options": AblationOptions(mean_contrasts=0)},
            r"^model.ablation_options.mean_contrasts: 0 is less than 1; give 1 or more$",
        ),
        (
            {"ablation_options": AblationOptions(mean_writes="x")},
            r"^model.ablation_options.mean_writes: it belongs to the ablation mean; leave it out or choose that$",
        ),
        (
            {"ablation": "mean", "ablation_options": AblationOptions(mean_writes="x")},
            r"^model.ablation_options.mean_writes: there is no file x; give another$",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        AttributionModule(**settings)
