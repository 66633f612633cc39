"""Parquet and CSV, as other programs read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sealed import write_batch

from lit_attr.errors import UserError
from lit_attr.records.exports import tables
from lit_attr.records.exports.export import export
from lit_attr.records.reading import load_attributions, with_lists

LAYERS = [0, 2, 7]
ODD_TOKENS = ["", "NA", ' "quoted", twice', "\r\n", "日 ", "x"]


def test_parquet_is_the_records_in_all_that_read_it(
    run: Path, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "ROW_GROUP", 4)
    path = export(run, "parquet", tmp_path / "new" / "run.parquet")
    file = pq.ParquetFile(path)
    assert file.metadata.num_row_groups == -(-len(records) // 4)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    scores = file.schema_arrow.field("scores").type.field("mlp").type
    assert [scores.field(kind).type for kind in ("sum", "l2")] == [pa.list_(pa.list_(pa.float64()))] * 2
    assert file.schema_arrow.field("id").type == pa.int64()
    assert file.read().to_pylist() == [with_lists(record) for record in records]
    dataset = datasets.load_dataset(
        "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(dataset) == list(load_attributions(run, "dataset"))
    frame = pd.read_parquet(path)
    assert list(frame.columns) == list(records[0])
    for (_, row), record in zip(frame.iterrows(), records, strict=True):
        assert (row["id"], row["step"], list(row["tokens"])) == (record["id"], record["step"], record["tokens"])
        assert (row["layers"].tolist(), list(row["scores"]), row["rule"]) == (LAYERS, ["mlp"], "gradient")
        np.testing.assert_array_equal(np.stack(row["scores"]["mlp"]["sum"]), record["scores"]["mlp"]["sum"])


def test_csv_has_a_row_a_contrast_and_layer_and_token(run: Path, records: list[dict[str, Any]], tmp_path: Path):
    path = export(run, "csv", tmp_path / "run.csv")
    assert path == tmp_path / "run.csv"
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
            scores_LT = record["scores"]["mlp"][kind]
            assert float(row[kind]) == scores_LT[LAYERS.index(int(row["layer"])), position]
        assert (row["token"], row["role"]) == (record["tokens"][position], record["roles"][position])
        assert (row["relation_id"], row["rule"], row["component"]) == (record["relation_id"], "gradient", "mlp")
        assert (float(row["logit_diff"]), int(row["rank_true"])) == (record["logit_diff"], record["rank_true"])
    sums = pd.read_csv(path).groupby(["id", "step", "layer"])["sum"].sum()
    for (identity, step), record in contrasts.items():
        np.testing.assert_allclose(sums[identity, step][LAYERS], record["scores"]["mlp"]["sum"].sum(1), rtol=1e-12)


def test_csv_has_the_rows_of_every_component(
    relabelled: Callable[..., Path], records: list[dict[str, Any]], tmp_path: Path
):
    """A component without a kind of scores leaves its column empty."""
    folder = relabelled(lambda scores: {"attention": {"sum": scores["mlp"]["sum"]}, **scores})
    frame = pd.read_csv(export(folder, "csv", tmp_path / "run.csv"))
    cells = sum(len(LAYERS) * len(record["tokens"]) for record in records)
    parts = [frame[frame["component"] == component] for component in ("attention", "mlp")]
    assert [len(part) for part in parts] == [cells, cells]
    np.testing.assert_array_equal(parts[0]["sum"], parts[1]["sum"])
    assert parts[0]["l2"].isna().all() and parts[1]["l2"].notna().all()


def test_csv_gives_odd_tokens_back(run: Path, changed: Callable[..., Path], tmp_path: Path):
    width = len(next(load_attributions(run))["tokens"])
    tokens = (ODD_TOKENS * width)[:width]
    path = export(changed({"tokens": tokens}), "csv", tmp_path / "run.csv")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["token"] for row in rows[:width]] == tokens
    frame = pd.read_csv(path, keep_default_na=False)
    assert frame["token"][:width].tolist() == tokens


def test_ids_of_both_kinds_are_texts_in_parquet(changed: Callable[..., Path], tmp_path: Path):
    folder = changed({"id": 7}, {"id": "seven"})
    table = pq.read_table(export(folder, "parquet", tmp_path / "run.parquet"))
    assert table["id"].to_pylist() == [str(record["id"]) for record in load_attributions(folder)]
    assert {"7", "seven"} < set(table["id"].to_pylist())


def test_neurons_have_a_row_each(changed: Callable[..., Path], tmp_path: Path):
    listed = [
        {"layer": 2, "token": 1, "neuron": 40, "score": -1.5},
        {"layer": 0, "token": 0, "neuron": 3, "score": 1},
    ]
    folder = changed({"neurons": listed}, {"neurons": []}, {"neurons": listed[1:]}, {"neurons": listed[:1]})
    # Four of the six contrasts that `changed` writes have neurons.
    for path in sorted(folder.glob("batches/*.json")):
        if "neurons" not in json.loads(path.read_bytes())["examples"][0]:
            path.unlink()
    path = export(folder, "csv", neurons=True)
    assert path == folder / "neurons.csv"
    frame = pd.read_csv(path, keep_default_na=False)
    assert [*frame] == [
        *("id", "relation_id", "step", "rule", "layer", "neuron", "position", "token", "role"),
        *("score", "logit_diff", "rank_true"),
    ]
    rows = [(record, each) for record in load_attributions(folder) for each in record["neurons"]]
    assert len(frame) == len(rows) == 4
    for row, (record, each) in zip(frame.to_dict("records"), rows, strict=True):
        assert (row["id"], row["layer"], row["neuron"], row["score"]) == (
            record["id"],
            each["layer"],
            each["neuron"],
            each["score"],
        )
        assert (row["position"], row["token"], row["role"]) == (
            each["token"],
            record["tokens"][each["token"]],
            record["roles"][each["token"]],
        )
    table = pq.read_table(export(folder, "parquet")).to_pylist()
    assert [row["neurons"] for row in table] == [record["neurons"] for record in load_attributions(folder)]


def test_a_neurons_token_can_be_escaped(changed: Callable[..., Path], tmp_path: Path):
    folder = changed()
    for path in folder.glob("batches/*.json"):
        batch = json.loads(path.read_bytes())
        (example,) = batch["examples"]
        example["tokens"][0] = "=1"
        example["neurons"] = [{"layer": 0, "token": 0, "neuron": 3, "score": 1.0}]
        path.unlink()
        write_batch(folder, batch)
    texts = [
        {*pd.read_csv(export(folder, "csv", tmp_path / name, neurons=True, escape_formulas=escaped))["token"]}
        for name, escaped in (("as it is", False), ("escaped", True))
    ]
    assert texts == [{"=1"}, {"'=1"}]


def test_only_csv_and_runs_with_neurons_have_a_table_of_them(changed: Callable[..., Path]):
    folder = changed()
    with pytest.raises(UserError, match="^neurons: it is for csv, not parquet; leave it out$"):
        export(folder, "parquet", neurons=True)
    with pytest.raises(
        UserError, match=rf"^neurons: {folder} has none; leave it out, or run again with top_neurons$"
    ):
        export(folder, "csv", neurons=True)
    assert not (folder / "neurons.csv").exists()
