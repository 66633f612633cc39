"""`scripts/export_attributions.py`: what other programs read, what Inseq makes of it, what is refused."""

from __future__ import annotations

import csv
import importlib.util
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peers import alike_in_length
from project import REPOSITORY, writing_trainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr import AttributionModule, CounterfactDataModule, load_attributions
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.sources import SAMPLE, open_rows

SCRIPT = REPOSITORY / "scripts" / "export_attributions.py"
_SPEC = importlib.util.spec_from_file_location("export_attributions", SCRIPT)
export = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(export)
LAYERS = [0, 2, 7]
# At its first step the two tokens are the same.
ALIKE = {
    "prompt": "The capital of Spain is",
    "subject": "Spain",
    "target_true": "Madrid",
    "target_false": "Manila",
    "relation_id": "P36",
}
ODD_TOKENS = ["", "NA", ' "quoted", twice', "\r\n", "日 ", "x"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model over a few facts, at every step of their answers."""
    folder = tmp_path_factory.mktemp("run") / "out"
    rows = [*islice(open_rows(SAMPLE), 5), {**ALIKE, "id": 1_000}]
    trainer = writing_trainer(folder, max_heatmaps=0, verify=0)
    data = CounterfactDataModule(rows, step="all", batch_size=1)
    trainer.predict(AttributionModule(layers=LAYERS), datamodule=data, return_predictions=False)
    return folder


@pytest.fixture(scope="module")
def records(run: Path) -> list[dict[str, Any]]:
    records = list(load_attributions(run))
    assert {record["step"] for record in records} >= {0, 1, 2}
    assert {record["true_token_id"] == record["false_token_id"] for record in records} == {True, False}
    return records


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run of some of the contrasts, two more than are changed; None takes a field out."""

    def make(*changes: dict[str, Any]) -> Path:
        folder = tmp_path / "changed"
        (folder / "batches").mkdir(parents=True)
        shutil.copy(run / "manifest.json", folder)
        paths = sorted(run.glob("batches/*.json"))[: len(changes) + 2]
        for place, (path, change) in enumerate(zip_longest(paths, changes, fillvalue={})):
            batch = json.loads(path.read_bytes())
            (example,) = batch["examples"]
            example |= change
            batch["examples"] = [{name: value for name, value in example.items() if value is not None}]
            (folder / "batches" / f"{place:02}.json").write_text(json.dumps(batch))
        return folder

    return make


def written(folder: Path, target: Path, *args: str) -> Path:
    assert export.main([str(folder), "--output", str(target), *args]) == 0
    return target


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "scores": {kind: scores.tolist() for kind, scores in record["scores"].items()}}


def seen(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_parquet_is_the_records_in_all_that_read_it(
    run: Path, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "ROW_GROUP", 4)
    path = written(run, tmp_path / "new" / "run.parquet", "--to", "parquet")
    file = pq.ParquetFile(path)
    assert file.metadata.num_row_groups == -(-len(records) // 4)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    scores = file.schema_arrow.field("scores").type
    assert [scores.field(kind).type for kind in ("sum", "l2")] == [pa.list_(pa.list_(pa.float64()))] * 2
    assert file.schema_arrow.field("id").type == pa.int64()
    assert file.read().to_pylist() == [plain(record) for record in records]
    dataset = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(dataset) == list(load_attributions(run, "dataset"))
    frame = pd.read_parquet(path)
    assert list(frame.columns) == list(records[0])
    for (_, row), record in zip(frame.iterrows(), records, strict=True):
        assert (row["id"], row["step"], list(row["tokens"])) == (record["id"], record["step"], record["tokens"])
        assert (row["layers"].tolist(), row["component"], row["rule"]) == (LAYERS, "mlp", "gradient")
        np.testing.assert_array_equal(np.stack(row["scores"]["sum"]), record["scores"]["sum"])


def test_csv_has_a_row_a_contrast_and_layer_and_token(
    run: Path, records: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = written(run, tmp_path / "run.csv", "--to", "csv")
    assert capsys.readouterr().out == f"{path}\n"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert " ".join(rows[0]) == (
        "id relation_id step rule component layer position token role sum l2 logit_diff rank_true"
    )
    expected = [
        (record["id"], record["step"], layer, position)
        for record in records
        for layer in LAYERS
        for position in range(len(record["tokens"]))
    ]
    columns = ("id", "step", "layer", "position")
    assert [tuple(int(row[column]) for column in columns) for row in rows] == expected
    contrasts = {(record["id"], record["step"]): record for record in records}
    for row in rows:
        record, position = contrasts[int(row["id"]), int(row["step"])], int(row["position"])
        for kind in ("sum", "l2"):
            assert float(row[kind]) == record["scores"][kind][LAYERS.index(int(row["layer"])), position]
        assert (row["token"], row["role"]) == (record["tokens"][position], record["roles"][position])
        assert (row["relation_id"], row["rule"], row["component"]) == (record["relation_id"], "gradient", "mlp")
        assert (float(row["logit_diff"]), int(row["rank_true"])) == (record["logit_diff"], record["rank_true"])
    sums = pd.read_csv(path).groupby(["id", "step", "layer"])["sum"].sum()
    for (identity, step), record in contrasts.items():
        np.testing.assert_allclose(sums[identity, step][LAYERS], record["scores"]["sum"].sum(1), rtol=1e-12)


def test_csv_gives_odd_tokens_back(run: Path, changed: Callable[..., Path], tmp_path: Path):
    width = len(next(load_attributions(run))["tokens"])
    tokens = (ODD_TOKENS * width)[:width]
    path = written(changed({"tokens": tokens}), tmp_path / "run.csv", "--to", "csv")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["token"] for row in rows[:width]] == tokens
    frame = pd.read_csv(path, keep_default_na=False)
    assert frame["token"][:width].tolist() == tokens


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("per", ["example", "layer"])
def test_inseq_loads_and_shows_the_scores(run: Path, records: list[dict[str, Any]], tmp_path: Path, per: str):
    from inseq import FeatureAttributionOutput

    folder = written(run, tmp_path / "inseq", "--to", "inseq", "--per", per)
    names = {f"{record['id']}_step_{record['step']}".removesuffix("_step_0"): record for record in records}
    heads = [""] if per == "example" else [f"layer_{layer}_" for layer in LAYERS]
    assert {path.name for path in folder.iterdir()} == {
        f"{head}ex_{name}.json" for head in heads for name in names
    }
    for name, record in names.items():
        width, logit_diff = len(record["tokens"]), record["logit_diff"]
        for place, head in enumerate(heads):
            loaded = FeatureAttributionOutput.load(folder / f"{head}ex_{name}.json")
            (sequence,) = loaded.sequence_attributions
            assert [token.token for token in sequence.source] == record["tokens"]
            assert sequence.target[:width] == sequence.source and len(sequence.target) == width + 1
            assert (sequence.attr_pos_start, sequence.attr_pos_end) == (width, width + 1)
            assert sequence.step_scores["contrast_logits_diff"].tolist() == pytest.approx([logit_diff], rel=1e-6)
            assert (loaded.info["id"], loaded.info["step"]) == (record["id"], record["step"])
            scores = sequence.target_attributions.numpy()
            assert np.isnan(scores[width]).all()
            expected_TL = record["scores"]["sum"].T
            if per == "layer":
                expected_TL = expected_TL[:, place : place + 1]
                scores = scores[..., None]
            assert scores.shape == (width + 1, 1, len(loaded.info["layers"]))
            assert loaded.info["layers"] == (LAYERS if per == "example" else [LAYERS[place]])
            np.testing.assert_allclose(scores[:width, 0], expected_TL, rtol=1e-6)
            # Nothing is normed or added up, unless somebody asks for it.
            own = loaded.aggregate().sequence_attributions[0].target_attributions
            torch.testing.assert_close(own, sequence.target_attributions, rtol=0, atol=0, equal_nan=True)
            page = loaded.show(display=False, return_html=True)
            assert max(record["tokens"], key=len).strip() in page
            assert ("Model Layer #2" in page) == (per == "example")
    same = next(name for name, each in names.items() if each["true_token_id"] == each["false_token_id"])
    (sequence,) = FeatureAttributionOutput.load(folder / f"{heads[0]}ex_{same}.json").sequence_attributions
    assert (sequence.target[-1].token, sequence.target[-1].id) == (
        names[same]["true_token"],
        names[same]["true_token_id"],
    )


@pytest.mark.filterwarnings("ignore")
def test_inseq_adds_layers_up_and_merges_contrasts(run: Path, records: list[dict[str, Any]], tmp_path: Path):
    from inseq import FeatureAttributionOutput

    folder = written(run, tmp_path / "inseq", "--to", "inseq")
    one, two = (FeatureAttributionOutput.load(folder / f"ex_{identity}.json") for identity in (0, 1))
    both = one + two
    expected = {record["id"]: record["scores"]["sum"].sum(0) for record in records if record["step"] == 0}
    added = both.aggregate("sum", normalize=False)
    for identity, sequence in enumerate(added.sequence_attributions):
        np.testing.assert_allclose(sequence.target_attributions[:-1, 0], expected[identity], rtol=1e-5, atol=1e-6)
    assert "Madrid" in " ".join(both.info["generated_texts"])
    assert "Spain" in added.show(display=False, return_html=True)


@pytest.mark.filterwarnings("ignore")
def test_a_layers_file_is_like_inseqs_own(
    run: Path,
    demo_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample_contrasts: list[Contrast],
    tmp_path: Path,
):
    """As in the example of Inseq's documentation, but with the objective that is ours, and signs."""
    import inseq

    folder = written(run, tmp_path / "inseq", "--to", "inseq", "--per", "layer")
    contrast = alike_in_length(sample_contrasts[:5], tokenizer)[0]
    fact, width = contrast.fact, len(contrast.tokens)
    path = "transformer.h.2.mlp"
    peer = inseq.load_model(demo_model, "layer_gradient_x_activation", tokenizer=tokenizer, target_layer=path)
    output = peer.attribute(
        fact.prompt,
        fact.prompt + fact.target_true,
        attributed_fn="contrast_logits_diff",
        contrast_targets=fact.prompt + fact.target_false,
        step_scores=list(export.STEP_SCORES),
        show_progress=False,
    )
    output.aggregate("sum", normalize=False).save(tmp_path / "theirs.json")
    theirs = inseq.FeatureAttributionOutput.load(tmp_path / "theirs.json")
    ours = inseq.FeatureAttributionOutput.load(folder / f"layer_2_ex_{fact.id}.json")
    (expected,), (sequence,) = theirs.sequence_attributions, ours.sequence_attributions
    expected_T, scores_T = (each.target_attributions[:width, 0] for each in (expected, sequence))
    tolerance = 1e-4 * expected_T.abs().max().item()
    torch.testing.assert_close(scores_T, expected_T, rtol=0, atol=tolerance)
    assert sequence.target_attributions.ndim == expected.target_attributions.ndim
    # NaN in the place of the token itself, as in theirs.
    assert expected.target_attributions[width, 0].isnan() and sequence.target_attributions[width, 0].isnan()
    assert sequence.attr_pos_start == expected.attr_pos_start
    assert sequence.step_scores.keys() == expected.step_scores.keys()
    for name, value in expected.step_scores.items():
        torch.testing.assert_close(sequence.step_scores[name], value[:1], rtol=1e-4, atol=1e-5)

    def spelt(text: str) -> str:
        return text.replace("Ġ", " ")

    last = sequence.target[-1]
    assert [token.token for token in sequence.source] == [spelt(token.token) for token in expected.source]
    assert (last.token, last.id) == (spelt(expected.target[width].token), expected.target[width].id)
    ignored = {"attr_pos_end", "model_name"}
    shared = ours.info.keys() & theirs.info.keys() - ignored
    assert shared >= {"attribution_method", "attributed_fn", "input_texts", "generated_texts", "step_scores"}
    assert {name: ours.info[name] for name in shared - {"attributed_fn_args"}} == {
        name: theirs.info[name] for name in shared - {"attributed_fn_args"}
    }
    assert ours.info["attributed_fn_args"].items() <= theirs.info["attributed_fn_args"].items()


def test_any_id_has_a_file_of_its_own(changed: Callable[..., Path], tmp_path: Path):
    texts = ["7_step_1", "a/b", "a_b", "A_b", "../a", ".a", "-1", "日" * 999, "日" * 998, "\U00020000" * 500]
    ids = [7, -1, *texts]
    folder = changed(*({"id": identity, "step": 0} for identity in ids), {"id": 7, "step": 1})
    files = sorted(written(folder, tmp_path / "new" / "inseq", "--to", "inseq").iterdir())
    assert seen(tmp_path / "new") == sorted(["inseq", *(f"inseq/{path.name}" for path in files)])
    # Some file systems take names for the same that differ in case.
    assert len({path.name.casefold() for path in files}) == len(ids) + 3
    found = [json.loads(path.read_bytes())["attributes"]["info"] for path in files]
    assert {(info["id"], info["step"]) for info in found} >= {*((identity, 0) for identity in ids), (7, 1)}


def test_ids_of_both_kinds_are_texts_in_parquet(changed: Callable[..., Path], tmp_path: Path):
    folder = changed({"id": 7}, {"id": "seven"})
    table = pq.read_table(written(folder, tmp_path / "run.parquet", "--to", "parquet"))
    assert table["id"].to_pylist() == [str(record["id"]) for record in load_attributions(folder)]
    assert table["id"].to_pylist()[:2] == ["7", "seven"]


@pytest.mark.parametrize("to", ["parquet", "csv", "inseq"])
def test_a_kind_of_score_can_be_missing(run: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch):
    def load(folder: Path):
        for record in load_attributions(folder):
            yield {**record, "rule": "other", "scores": {"sum": record["scores"]["sum"]}}

    monkeypatch.setattr(export, "load_attributions", load)
    path = written(run, tmp_path / "out", "--to", to)
    if to == "parquet":
        rows = pq.read_table(path).to_pylist()
        assert rows == [plain(record) for record in load(run)]
    elif to == "csv":
        frame = pd.read_csv(path)
        assert "sum" in frame and "l2" not in frame and set(frame["rule"]) == {"other"}
    else:
        assert len(list(path.iterdir())) == sum(1 for _ in load(run))


def test_goes_into_the_runs_folder_and_overwrites_nothing(changed: Callable[..., Path], capsys):
    folder = changed()
    names = {"parquet": "attributions.parquet", "csv": "attributions.csv", "inseq": "inseq"}
    for to, name in names.items():
        assert export.main([str(folder), "--to", to]) == 0
        assert capsys.readouterr().out == f"{folder / name}\n"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for to, name in names.items():
        assert export.main([str(folder), "--to", to]) == 1
        assert capsys.readouterr().err == (
            f"export_attributions.py: error: --output: {folder / name} is there already; give another place, or "
            "move it away\n"
        )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    # A run that goes on in the folder, and whoever reads it, are not disturbed.
    assert sum(1 for _ in load_attributions(folder)) == 2


@pytest.mark.parametrize(
    "damage, args, message",
    [
        ("manifest.json", ["--to", "csv"], "there is no manifest.json in it; give the output folder of a run"),
        ("batches", ["--to", "csv"], "there is no contrast in it; give the output folder of a run that has some"),
        ("cut", ["--to", "csv"], "00.json: not JSON"),
        ("cut", ["--to", "parquet"], "00.json: not JSON"),
        ("cut last", ["--to", "csv"], "01.json: not JSON"),
        ("cut last", ["--to", "parquet"], "01.json: not JSON"),
        ("cut last", ["--to", "inseq"], "01.json: not JSON"),
        ("", ["--to", "csv", "--per", "layer"], "--per: it is for --to inseq, not csv; leave it out"),
        ("", ["--to", "csv", "--output", "{run}/manifest.json/x"], "--output: {run}/manifest.json/x cannot be"),
    ],
)
def test_errors_are_one_line(damage: str, args: list[str], message: str, changed: Callable[..., Path], capsys):
    folder = changed()
    if damage.startswith("cut"):
        path = folder / "batches" / ("01.json" if damage == "cut last" else "00.json")
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "batches":
        shutil.rmtree(folder / "batches")
    elif damage:
        (folder / damage).unlink()
    before = seen(folder)
    assert export.main([str(folder), *(arg.format(run=folder) for arg in args)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("export_attributions.py: error: ") and told.err.count("\n") == 1
    assert message.format(run=folder) in told.err and not told.out
    assert seen(folder) == before


@pytest.mark.parametrize("to", ["parquet", "csv", "inseq"])
@pytest.mark.parametrize(
    "changes, odd",
    [([{"relation_id": None}], "relation_id"), ([{}, {"step": None}], "step"), ([{}, {"more": 1}], "more")],
)
def test_refuses_contrasts_that_differ_in_their_fields(
    changes: list[dict], odd: str, to: str, changed: Callable[..., Path], capsys
):
    folder = changed(*changes)
    before = seen(folder)
    assert export.main([str(folder), "--to", to]) == 1
    assert f"lacks {odd}, or has it alone; move its batch file away and run again\n" in capsys.readouterr().err
    assert seen(folder) == before


@pytest.mark.parametrize("to", ["parquet", "csv", "inseq"])
def test_a_disk_that_takes_no_more(to: str, run: Path, tmp_path: Path, capsys):
    import inseq  # noqa: F401  Python may write what it has compiled of it

    folder = tmp_path / "new"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        assert export.main([str(run), "--to", to, "--output", str(folder / "out")]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == (
        f"export_attributions.py: error: --output: {folder / 'out'} cannot be written to (File too large); "
        "mend that or give another place\n"
    )
    assert seen(folder) == []


def test_without_inseq(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    # What Python itself has there for a module that must not be imported.
    for name in ("inseq", "inseq.data", "inseq.data.attribution"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export.main([str(run), "--to", "inseq", "--output", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("export_attributions.py: error: --to inseq: it needs Inseq (")
    assert told.endswith("); pip install 'lit-attr[peers]'\n") and told.count("\n") == 1
    assert seen(tmp_path) == []
    assert export.main([str(run), "--to", "csv", "--output", str(tmp_path / "out")]) == 0


def test_is_a_program_and_makes_nothing_for_what_is_no_run(tmp_path: Path):
    folder = tmp_path / "none"
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, "--to", "parquet"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"export_attributions.py: error: {folder}: there is no manifest.json in it; give the output folder of a "
        "run\n"
    )
    assert seen(tmp_path) == []
