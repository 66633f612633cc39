"""Runs that promise an agreement: what is exact in them, and the same after interruptions and in two processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from project import writing_trainer
from runs import CPU, finish, launch, own_lines, start, wait_until
from sealed import reseal

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.module import AttributionModule
from lit_attr.records.reading import load_attributions

ROWS, PILOT, VERIFIED = 48, 6, 4
ADAPTIVE = {"min_agreement": 0.95, "pilot": PILOT}


def run(folder: Path, limit: int = ROWS, *, writer: dict[str, Any] | None = None, **settings: Any) -> Path:
    bounds = {name: settings.pop(name, value) for name, value in (("batch_size", 8), ("max_tokens", None))}
    trainer = writing_trainer(folder, max_heatmaps=0, **(writer or {}))
    module = AttributionModule(**{"verify": VERIFIED, **settings})
    trainer.predict(module, datamodule=CounterfactDataModule(limit=limit, **bounds), return_predictions=False)
    return folder


def command(folder: Path, *words: object) -> list[str]:
    settings = {
        "data.limit": ROWS,
        "data.batch_size": 8,
        "model.min_agreement": 0.95,
        "model.pilot": PILOT,
        "model.verify": VERIFIED,
        "writer.output_dir": folder,
        "writer.max_heatmaps": 0,
        "trainer.logger": "false",
    }
    flags = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return ["predict", *flags, *CPU, *map(str, words)]


def records(folder: Path) -> dict[int, dict[str, Any]]:
    return {record["id"]: record for record in load_attributions(folder)}


def sums(record: dict[str, Any]) -> Any:
    return record["scores"]["mlp"]["sum"]


def is_exact(record: dict[str, Any]) -> Any:
    return np.array(record["is_exact"]["mlp"])


def exact_files(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(path.read_bytes()) for path in folder.glob("exact/*.json")]
    return {record["id"]: record for record in found}


def pilot_of(folder: Path) -> set[int]:
    return {identity for identity, record in exact_files(folder).items() if record["is_pilot"]}


def error_model(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "error_model.json").read_bytes())
    return fields


def files(folder: Path) -> dict[str, bytes]:
    """The records and the error model, byte for byte."""
    paths = [*folder.glob("*/*.json"), folder / "error_model.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return run(tmp_path_factory.mktemp("whole"), **ADAPTIVE)


def test_the_pilot_is_exact_and_the_next_contrasts_judge(whole: Path):
    found, pilot = exact_files(whole), pilot_of(whole)
    places = {identity: record["place"] for identity, record in found.items()}
    assert sorted(places[identity] for identity in pilot) == [*range(PILOT)]
    assert sorted(places.values()) == [*range(PILOT + VERIFIED)]
    examples = records(whole)
    for identity in pilot:
        assert is_exact(examples[identity]).all()
        np.testing.assert_array_equal(sums(examples[identity]), found[identity]["effects"]["mlp"])
    assert sorted(key for key, _ in json.loads((whole / "error_model.json").read_bytes())["pilot"]) == sorted(
        pilot
    )
    others = [is_exact(record) for identity, record in examples.items() if identity not in pilot]
    assert 0.02 < np.mean([flags.mean() for flags in others]) < 0.9
    summary = json.loads((whole / "summary.json").read_bytes())
    assert (summary["agreement"]["contrasts"], summary["adaptive"]["pilot"]) == (VERIFIED, PILOT)


def test_the_error_model_is_written_before_any_other_score(whole: Path):
    names = {f"{identity:08d}-{step}.json" for identity, step in error_model(whole)["pilot"]}
    written = {path.name: path.stat().st_mtime_ns for path in whole.glob("batches/*.json")}
    moment = (whole / "error_model.json").stat().st_mtime_ns
    assert max(written[name] for name in names) < moment
    assert moment < min(time for name, time in written.items() if name not in names)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "linearised", "frozen_attention": True},
        {"rule": "norm-secant"},
    ],
)
def test_exact_cells_are_those_of_the_rule_exact_and_others_those_of_the_plain_run(
    settings: dict[str, Any], whole: Path, tmp_path: Path
):
    from lit_attr.attribution.catalogue import RuleOptions

    options = {name: value for name, value in settings.items() if name == "rule"}
    if "frozen_attention" in settings:
        options["rule_options"] = RuleOptions(frozen_attention=True)
    limit = 20 if settings else ROWS
    adaptive = run(tmp_path / "adaptive", limit, **ADAPTIVE, **options) if settings else whole
    plain = records(run(tmp_path / "plain", limit, verify=0, **options))
    exact = records(run(tmp_path / "exact", limit, rule="exact"))
    pilot, counts = pilot_of(adaptive), np.zeros(2)
    for identity, record in records(adaptive).items():
        flags, scores, effects = is_exact(record), sums(record), sums(exact[identity])
        estimates = sums(plain[identity])
        np.testing.assert_allclose(scores[flags], effects[flags], rtol=0, atol=1e-5 * abs(effects).max())
        np.testing.assert_array_equal(scores[~flags], estimates[~flags])
        norms, plain_norms = record["scores"]["mlp"].get("l2"), plain[identity]["scores"]["mlp"].get("l2")
        if identity in pilot and norms is not None:
            # In a batch of its own, so that the last digits may differ.
            np.testing.assert_allclose(norms, plain_norms, rtol=1e-3, atol=1e-6)
        else:
            np.testing.assert_array_equal(norms, plain_norms)
            counts += flags.sum(), (~flags).sum()
    assert min(counts) > 10


@pytest.mark.parametrize(
    "bounds", [{"batch_size": None, "max_tokens": 256}, {"batch_size": None, "max_tokens": 64}]
)
def test_other_batches_have_the_same_exact_cells(bounds: dict[str, Any], whole: Path, tmp_path: Path):
    other = records(run(tmp_path, verify=0, **ADAPTIVE, **bounds))
    same = [is_exact(record) == is_exact(other[identity]) for identity, record in records(whole).items()]
    assert np.concatenate([flags.ravel() for flags in same]).mean() >= 0.999


def test_two_processes_give_the_records_of_one(whole: Path, tmp_path: Path):
    words = command(tmp_path / "out", "--trainer.strategy", "ddp", "--trainer.devices", 2)
    with launch(["-m", "lit_attr", *words], tmp_path / "log") as process:
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    found = records(tmp_path / "out")
    for identity, record in records(whole).items():
        np.testing.assert_array_equal(is_exact(found[identity]), is_exact(record))
        np.testing.assert_array_equal(sums(found[identity]), sums(record))
    error_models = error_model(whole), error_model(tmp_path / "out")
    assert error_models[0]["pilot"] == error_models[1]["pilot"]
    for name in ("thresholds_L", "weights_K"):
        first, second = (np.array(fields[name], dtype=float) for fields in error_models)
        np.testing.assert_allclose(first, second, rtol=1e-9)
    assert exact_files(tmp_path / "out").keys() == exact_files(whole).keys()


def moments(folder: Path) -> Iterator[Any]:
    """Conditions that hold one after the other during a run."""
    error_model = folder / "error_model.json"

    def exact() -> int:
        return len([*folder.glob("exact/*.json")])

    def batches() -> int:
        return len([*folder.glob("batches/*.json")])

    yield lambda: exact() >= 2
    yield lambda: exact() >= PILOT
    yield error_model.exists
    yield lambda: batches() >= PILOT + 3
    yield lambda: exact() >= PILOT + 1
    yield lambda: exact() >= PILOT + VERIFIED


def test_killed_six_times_gives_the_records_of_an_uninterrupted_run(tmp_path: Path):
    assert finish(start(command(tmp_path / "whole"), tmp_path / "log")) == 0
    folder, log = tmp_path / "killed", tmp_path / "log"
    kills = []
    for condition in moments(folder):
        process = start(command(folder), log)
        wait_until(lambda: condition() or not process.is_alive())  # noqa: B023  # called at once
        process.kill()
        finish(process)
        kills.append((process.exitcode, (folder / "error_model.json").exists(), len([*folder.glob("*/*.json")])))
        if not (folder / "error_model.json").exists():
            assert len([*folder.glob("batches/*.json")]) <= PILOT
    assert finish(start(command(folder), log)) == 0
    assert files(folder) == files(tmp_path / "whole")
    assert {path.name for path in folder.rglob(".*")} == {".lock"}
    # The first kills came before there was an error model, the later ones after it.
    assert [kill[0] for kill in kills[:5]] == [-signal.SIGKILL] * 5
    assert not kills[0][1] and kills[3][1]
    print(f"exit status, error model, records: {kills}")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_waits_for_the_pilot_of_a_killed_one_ends(victim: int, tmp_path: Path):
    folder, pilot = tmp_path / "out", 24
    words = command(folder, "--trainer.strategy", "ddp", "--trainer.devices", 2, "--model.pilot", pilot)
    with launch(["-m", "lit_attr", *words], tmp_path / "log") as process:
        try:
            wait_until(lambda: any(folder.glob("exact/*.json")))
            other = json.loads((folder / ".process-1.lock").read_bytes())["pid"]
            stopped, waiting = (process.pid, other) if victim == 0 else (other, process.pid)
            os.kill(stopped, signal.SIGSTOP)
            written = len([*folder.glob("exact/*.json")])
            # The other process computes its half, and can do no more.
            wait_until(lambda: len([*folder.glob("exact/*.json")]) >= min(pilot // 2 + 1, written + pilot // 4))
            assert not (folder / "error_model.json").exists()
            os.kill(stopped, signal.SIGKILL)
            wait_until(lambda: not is_running(waiting), seconds=60)
            assert process.wait(60) != 0
        finally:
            os.killpg(process.pid, signal.SIGKILL) if is_running(process.pid) else None
    assert any("of the run has ended before all was done" in line for line in own_lines(tmp_path / "log"))


def is_running(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_an_extended_run_keeps_its_error_model_and_its_pilot_judges_nothing(tmp_path: Path):
    run(tmp_path, 16, **ADAPTIVE)
    before = files(tmp_path)
    pilot = pilot_of(tmp_path)
    run(tmp_path, **ADAPTIVE)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert pilot_of(tmp_path) == pilot and len(pilot) == PILOT
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert summary["contrasts"] == ROWS
    assert summary["agreement"]["contrasts"] == len(exact_files(tmp_path)) - PILOT >= VERIFIED


def test_a_pilot_begun_by_an_interrupted_run_is_completed_by_an_extended_one(tmp_path: Path):
    run(tmp_path, 4, **ADAPTIVE)
    assert len(pilot_of(tmp_path)) == 4 and not (tmp_path / "error_model.json").exists()
    pilot = pilot_of(tmp_path)
    run(tmp_path, 20, **ADAPTIVE)
    assert len(pilot_of(tmp_path)) == PILOT and pilot < pilot_of(tmp_path)


@pytest.mark.parametrize("kind", ["exact", "batches"])
def test_a_file_of_the_pilot_that_was_moved_away_is_written_again(kind: str, tmp_path: Path):
    run(tmp_path, 16, **ADAPTIVE)
    before = files(tmp_path)
    for identity, step in error_model(tmp_path)["pilot"][:2]:
        (tmp_path / kind / f"{identity:08d}-{step}.json").unlink()
    run(tmp_path, 16, **ADAPTIVE)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        (ADAPTIVE, {**ADAPTIVE, "min_agreement": 0.9}, "model.min_agreement 0.95, this run has 0.9"),
        (ADAPTIVE, {**ADAPTIVE, "pilot": 5}, "model.pilot 6, this run has 5"),
        (ADAPTIVE, {}, "model.min_agreement 0.95, this run has None"),
        ({}, ADAPTIVE, "model.min_agreement None, this run has 0.95"),
    ],
)
def test_another_promise_is_refused_in_one_line(
    first: dict[str, Any], second: dict[str, Any], named: str, tmp_path: Path
):
    run(tmp_path, 8, **first, verify=0)
    with pytest.raises(
        UserError, match=rf"^writer\.output_dir: {tmp_path} was written with {named}; give another"
    ):
        run(tmp_path, 8, **second, verify=0)


def test_a_damaged_or_foreign_error_model_is_refused_and_overwritten(tmp_path: Path):
    path = run(tmp_path / "out", 10, **ADAPTIVE) / "error_model.json"
    content = path.read_bytes()
    for damaged, reason in (
        (content[:-200], "not JSON "),
        (content.replace(b'"depth":8', b'"depth":9'), "digest: the file is not as it was written"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^{path}: {reason}[^\n]*; move it away"):
            run(tmp_path / "out", 10, **ADAPTIVE)
    path.write_bytes(content)
    reseal(path, lambda fields: fields.update(run="another"))
    with pytest.raises(
        UserError, match=rf"^{path}: run: it is 'another', and in manifest\.json [^\n]*; move it away"
    ):
        run(tmp_path / "out", 10, **ADAPTIVE)
    run(tmp_path / "out", 10, writer={"overwrite": True}, **ADAPTIVE)
    assert path.read_bytes() == content
    (aside,) = (tmp_path / "out").glob("replaced-*")
    assert json.loads((aside / "error_model.json").read_bytes())["run"] == "another"
