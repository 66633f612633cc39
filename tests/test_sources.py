"""Files of every kind, written here and read back."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pytest

from lit_attr.errors import UserError
from lit_attr.sources import open_rows

ROWS = [
    {"prompt": "The capital of Côte d'Ivoire is", "subject": "Côte d'Ivoire", "target_true": " Yamoussoukro"},
    {"prompt": 'A "quoted", line\nbroken prompt', "subject": "東京", "target_true": " 😀"},
]


def write(path: Path) -> Path:
    suffix = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if suffix == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        return path
    with io.StringIO(newline="") as stream:
        if suffix == "json":
            json.dump(ROWS, stream, indent=1)
        elif suffix == "jsonl":
            stream.write("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n")
        else:
            writer = csv.DictWriter(stream, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
        content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_reads_every_kind_of_file(tmp_path: Path, suffix: str, packed: str):
    path = write(tmp_path / f"facts{suffix}{packed}")
    assert list(open_rows(str(path))) == ROWS


def test_reads_a_data_set_and_any_iterable():
    assert list(open_rows(datasets.Dataset.from_list(ROWS))) == ROWS
    assert list(open_rows(iter(ROWS))) == ROWS


def refusal(source: str) -> str:
    with pytest.raises(UserError) as refused:
        list(open_rows(source))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_names_a_missing_file(tmp_path: Path):
    assert "there is no file" in refusal(str(tmp_path / "none.jsonl"))


def test_names_a_file_of_an_unknown_kind(tmp_path: Path):
    assert "neither a hub name nor a file ending in .json" in refusal(str(tmp_path / "facts.xlsx"))


def test_names_the_line_that_is_not_json(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    assert f"{path}, line 2: not JSON" in refusal(str(path))
    path = tmp_path / "facts.json"
    path.write_text('[{"a": 1},\n{"a" 1}]')
    assert f"{path}, line 2: not JSON" in refusal(str(path))


def test_refuses_json_that_is_not_rows(tmp_path: Path):
    path = tmp_path / "facts.json"
    path.write_text('{"a": 1}')
    assert "is not a list of rows" in refusal(str(path))
    path.write_text("[1]")
    assert "row 0: a int, not a row of named columns" in refusal(str(path))


def test_refuses_text_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "facts.csv"
    path.write_bytes("prompt\nCôte".encode("latin-1"))
    assert f"{path} is not UTF-8" in refusal(str(path))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet", ".parquet.gz"])
def test_refuses_a_file_cut_short(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"facts{suffix}")
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refusal(str(path))


def test_names_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "no data set 'nobody/nothing' could be loaded from the hub" in refusal("nobody/nothing")
