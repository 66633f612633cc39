"""Files of a run that were changed, copied, renamed, swapped or taken from another run are noticed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from project import writing_trainer

from lit_attr.callbacks.display import RunDisplay
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import UserError
from lit_attr.evaluation.summary import summarise
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.module import AttributionModule
from lit_attr.records.folder import RunFolder
from lit_attr.records.reading import load_attributions

ROWS = [*open_rows(SAMPLE)][:12]
MUTATIONS = 300
OTHERS: dict[str, dict[str, Any]] = {
    "rule": {"rule": "linearised"},
    "component": {"component": "attention"},
    "layers": {"layers": [0, 1, 2, 3, 4, 5, 6]},
    "seed": {"sample_seed": 1},
    "data": {},
}


def run(folder: Path, rows: list[Any] = ROWS, **settings: Any) -> None:
    trainer = writing_trainer(folder, max_heatmaps=0)
    module = AttributionModule(**{"verify": 4, **settings})
    trainer.predict(module, datamodule=CounterfactDataModule(rows, batch_size=4), return_predictions=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs that differ in one setting, or in their facts alone."""
    folders = {name: tmp_path_factory.mktemp("others") / name for name in OTHERS}
    for name, folder in folders.items():
        rows = [{**row, "target_false": " nowhere"} for row in ROWS] if name == "data" else ROWS
        run(folder, rows, **OTHERS[name])
    return folders


class Reading(NamedTuple):
    """All that is read from a folder by a run that opens it, and by whoever reads its records.

    The summary in its file is None where the run makes it anew.
    """

    records: list[dict[str, Any]]
    done: frozenset[Any]
    exact: dict[Any, bool]
    summary: dict[str, Any]
    kept_summary: dict[str, Any] | None


def read(folder: Path) -> Reading:
    run = RunFolder(folder)
    settings = {group: json.loads(SETTINGS[group]) for group in ("model", "data")}
    run.check(settings)
    run.open(settings, [])
    state = run.read_state()
    records = [
        {**record, "scores": {kind: each.tolist() for kind, each in record["scores"]["mlp"].items()}}
        for record in load_attributions(folder)
    ]
    summary = summarise(run).summary
    kept = None if RunDisplay(run).is_changed(summary) else run.read_summary()
    done = frozenset(key for key in ((record["id"], record["step"]) for record in records) if key in state.done)
    assert len(done) == len(state.done)
    return Reading(records, done, dict(state.exact), summary, kept)


SETTINGS: dict[str, str] = {}


@pytest.fixture(scope="module")
def expected(whole: Path) -> Reading:
    manifest = json.loads((whole / "manifest.json").read_bytes())
    SETTINGS.update({group: json.dumps(manifest[group]) for group in ("model", "data")})
    return read(whole)


def places_of(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all fields and elements of a JSON value."""
    found: list[tuple[Any, ...]] = []
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            found += [(*way, key), *places_of(each, (*way, key))]
    return found


def changed(value: Any, random: random.Random) -> Any:
    """Another value, of the same type or of another one."""
    if random.random() < 0.4:
        return random.choice([other for other in (None, "x", 3, 0.5, [], {}, [1], True) if other != value])
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int | float):
        return value + random.choice([1, -1, 1e-3])
    if isinstance(value, str):
        return f"{value} "
    if isinstance(value, list):
        return value[:-1] if value else [0]
    return dict([*value.items()][:-1]) if value else {"x": 1}


def edit(path: Path, random: random.Random, *, remove: bool) -> set[Path]:
    content = json.loads(path.read_bytes())
    # Of all numbers, how long a run took is the only one that cannot be computed again.
    *way, last = random.choice([way for way in places_of(content) if way[0] != "seconds"])
    inner = content
    for key in way:
        inner = inner[key]
    if remove:
        del inner[last]
    else:
        inner[last] = changed(inner[last], random)
    path.write_bytes(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode())
    return {path}


def mutate(folder: Path, others: dict[str, Path], random: random.Random) -> set[Path]:
    """Changes a folder and returns the files that are no longer as they were written."""
    batches, exact = sorted(folder.glob("batches/*.json")), sorted(folder.glob("exact/*.json"))
    single = [folder / "manifest.json", folder / "summary.json"]
    path = random.choice([random.choice(batches), random.choice(exact), *single])
    kind = random.choice(["remove", "change", "change", "foreign", "rename", "copy", "truncate", "swap", "flip"])
    if kind in ("rename", "copy", "swap") and path in single:
        kind = "change"
    if kind in ("remove", "change"):
        return edit(path, random, remove=kind == "remove")
    if kind == "foreign":
        other = others[random.choice([*others])]
        taken = random.choice(sorted((other / path.relative_to(folder)).parent.glob(f"{path.stem[:1]}*.json")))
        target = path if path in single or random.random() < 0.5 else path.with_name(taken.name)
        shutil.copy(other / path.name if path in single else taken, target)
        return {target}
    target = path.with_name(random.choice(["00000099-0.json", "00000000-3.json", "x.json", f"copy-{path.name}"]))
    if kind == "rename":
        path.rename(target)
        return {target}
    if kind == "copy":
        target = random.choice([target, folder / random.choice(["batches", "exact"]) / "00000098-0.json"])
        shutil.copy(path, target)
        return {target}
    content = path.read_bytes()
    if kind == "truncate":
        path.write_bytes(content[: random.randrange(len(content))])
        return {path}
    if kind == "swap":
        second = random.choice([each for each in (*batches, *exact) if each != path])
        path.write_bytes(second.read_bytes())
        second.write_bytes(content)
        return {path, second}
    at = random.randrange(len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << random.randrange(7)]) + content[at + 1 :])
    return {path}


def test_mutations_are_refused_or_made_anew(
    whole: Path, others: dict[str, Path], expected: Reading, tmp_path: Path
):
    generator = random.Random(0)
    refused = 0
    for number in range(MUTATIONS):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        files = mutate(folder, others, generator)
        refusal, found = "", None
        try:
            found = read(folder)
        except UserError as error:
            refusal = str(error)
        if found is None:
            # A manifest of another run is named by what it says.
            named = any(str(path) in refusal for path in files)
            assert named or (files == {folder / "manifest.json"} and "was written with" in refusal), (
                number,
                refusal,
            )
            assert "\n" not in refusal
            refused += 1
        else:
            # Only a summary can be made anew. Its numbers are those of the records, whatever is in the file.
            assert files == {folder / "summary.json"}, (number, files)
            assert found.kept_summary in (None, expected.kept_summary), number
            np.testing.assert_equal(found._replace(kept_summary=None), expected._replace(kept_summary=None))
        shutil.rmtree(folder)
    assert refused > MUTATIONS // 2


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["batches", "exact"])
def test_a_file_of_another_run_is_named_with_its_field(
    whole: Path, others: dict[str, Path], expected: Reading, tmp_path: Path, name: str, kind: str
):
    shutil.copytree(whole, tmp_path / "out")
    (path,) = sorted((tmp_path / "out" / kind).iterdir())[:1]
    path.unlink()
    taken = min((others[name] / kind).iterdir())
    shutil.copy(taken, path.with_name(taken.name))
    field = name if name in ("rule", "component", "layers") else "run"
    with pytest.raises(UserError, match=rf"{kind}/{taken.name}: {field}: it is .*manifest\.json .*of another run"):
        read(tmp_path / "out")


def test_a_copy_and_a_changed_prompt_are_named(whole: Path, expected: Reading, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    path = min(folder.glob("batches/*.json"))
    copy = shutil.copy(path, folder / "batches" / "00000777-0.json")
    with pytest.raises(UserError, match=rf"{copy}: id: .* is a copy or was renamed; move it away"):
        read(folder)
    copy.unlink()
    path.write_bytes(path.read_bytes().replace(b'"prompt":"', b'"prompt":"So '))
    with pytest.raises(UserError, match=f"{path}: digest: the file is not as it was written"):
        read(folder)


def _set(name: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), name: value}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        *(_set("version", 3), _set("format", "other"), _set("contrasts", "12"), _set("agreement", 7)),
        *(_set("profile", None), _set("seconds", "fast"), _set("known", 5)),
        *(lambda content: content[:100], lambda _: b"", lambda _: b"[]", lambda _: b"\xff"),
    ],
)
def test_a_damaged_or_future_summary_is_made_anew(whole: Path, tmp_path: Path, damage: Callable[[bytes], bytes]):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    path = folder / "summary.json"
    path.write_bytes(damage(path.read_bytes()))
    run(folder)
    again, before = (json.loads((each / "summary.json").read_bytes()) for each in (folder, whole))
    for summary in (again, before):
        assert summary.pop("seconds") >= 0
        summary.pop("digest", None)
    assert again == before


def test_a_damaged_record_ends_a_run_in_one_line(whole: Path, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    path = max(folder.glob("batches/*.json"))
    path.write_bytes(path.read_bytes().replace(b'"rank_true":', b'"rank_true":1', 1))
    with pytest.raises(UserError, match=f"{path}: digest: "):
        run(folder)
