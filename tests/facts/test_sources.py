"""Files of every kind, written here and read back, intact and damaged."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import zlib
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_attr.errors import UserError
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import open_rows

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
    assert refusal(str(path)) == f"{path}, line 2: not JSON (Expecting value); fix the line"
    path = tmp_path / "facts.json"
    path.write_text('[{"a": 1},\n{"a" 1}]')
    assert refusal(str(path)) == f"{path}, line 2: not JSON (Expecting ':' delimiter); fix the file"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert refusal(str(path)) == f"{path}, line 2: not JSON (Extra data); name a file with one row a line .jsonl"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (".json", r"facts\.json: not JSON \(.+\); fix it"),
        (".jsonl", r"facts\.jsonl, line 2: not JSON \(.+\); fix it"),
    ],
)
def test_names_the_file_of_json_too_deep_to_read(tmp_path: Path, suffix: str, message: str):
    path = tmp_path / f"facts{suffix}"
    path.write_text("\n" + "[" * 200_000)
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/{message}", refusal(str(path)))
    assert "(maximum recursion depth" in refusal(str(path))
    path.write_text("\n[" + "7" * 5000 + "]")
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/{message}", refusal(str(path)))
    assert "(Exceeds the limit (4300 digits)" in refusal(str(path))


def test_refuses_json_that_is_not_rows(tmp_path: Path):
    path = tmp_path / "facts.json"
    path.write_text('{"a": 1}')
    assert f"{path}: not a list of rows" in refusal(str(path))


def test_rows_that_are_not_objects_are_passed_on(tmp_path: Path):
    for name, text in (("facts.json", '[1, {"a": 1}, null]'), ("facts.jsonl", '1\n{"a": 1}\nnull')):
        (tmp_path / name).write_text(text)
        assert list(open_rows(str(tmp_path / name))) == [1, {"a": 1}, None]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_names_the_line_that_is_not_utf8(tmp_path: Path, suffix: str, packed: str):
    path = tmp_path / f"facts{suffix}{packed}"
    # Each line is far longer than the read buffer.
    lines = [b'{"a": "' + b"x" * 300_000 + end for end in (b'"}\r\n', b'"}\n', b'C\xf4te"}\n', b'"}\n')]
    content = b"".join(lines)
    if suffix == ".csv":
        content = content.replace(b'"', b"")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert f"{path}, line 3: not UTF-8 (invalid continuation byte); convert it" in refusal(str(path))
    path.write_bytes(gzip.compress(content.decode("latin-1").encode("utf-16")) if packed else b"\xff\xfea\0")
    assert f"{path}, line 1: not UTF-8" in refusal(str(path))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, suffix: str, packed: str):
    path = write(tmp_path / f"facts{suffix}")
    marked = path.with_name(f"marked{suffix}{packed}")
    content = path.read_bytes().decode().encode("utf-8-sig")
    marked.write_bytes(gzip.compress(content) if packed else content)
    assert list(open_rows(str(marked))) == ROWS


@pytest.mark.parametrize("suffix", [".json.gz", ".jsonl.gz", ".csv.gz", ".parquet", ".parquet.gz"])
@pytest.mark.parametrize("damage", ["cut", "flip", "append"])
def test_refuses_a_truncated_or_damaged_file(tmp_path: Path, suffix: str, damage: str):
    path = write(tmp_path / f"facts{suffix}")
    content = path.read_bytes()
    # The middle of a parquet file has no checksum.
    place = 20 if path.suffix == ".gz" else len(content) - 10
    flipped = content[:place] + bytes(255 - byte for byte in content[place : place + 10]) + content[place + 10 :]
    path.write_bytes({"cut": content[:-20], "flip": flipped, "append": content + b"more"}[damage])
    assert str(path) in refusal(str(path))


def test_names_the_last_whole_line_of_a_truncated_gzip_file(tmp_path: Path):
    path = tmp_path / "facts.jsonl.gz"
    lines = "".join(f'{{"a": "{random.Random(number).randbytes(300).hex()}"}}\n' for number in range(1000))
    packed = gzip.compress(lines.encode())
    path.write_bytes(packed[: len(packed) // 2])
    whole = zlib.decompressobj(wbits=31).decompress(path.read_bytes()).count(b"\n")
    assert 400 < whole < 600
    message = refusal(str(path))
    assert message.endswith("; it may be incomplete, or not what its name says")
    named = int(message.split(" cannot be read after line ")[1].split()[0])
    assert whole - 40 < named <= whole


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_refuses_an_empty_file_and_one_without_rows(tmp_path: Path, suffix: str, packed: str):
    path = tmp_path / f"facts{suffix}{packed}"
    path.write_bytes(gzip.compress(b"") if packed else b"")
    assert str(path) in refusal(str(path))
    if packed:
        path.write_bytes(b"")
        assert str(path) in refusal(str(path))
    without_rows = {".json": b"[]", ".jsonl": b"\n \n", ".csv": b"prompt,subject\n", ".parquet": no_rows()}[suffix]
    path.write_bytes(gzip.compress(without_rows) if packed else without_rows)
    assert refusal(str(path)) == f"{path}: there are no rows; give a file that has some"


def no_rows() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), content)
    return content.getvalue()


def test_refuses_a_folder_that_is_named_like_a_file(tmp_path: Path):
    (tmp_path / "facts.csv").mkdir()
    assert "there is no file" in refusal(str(tmp_path / "facts.csv"))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('a,b\n1,2\n"3,4\n5,6\n', "line 3: not CSV (unexpected end of data)"),
        ('a,b\n"x\ny",2\n3,"4"5\n6,7\n', "line 4: not CSV"),
        ("a,b,a\n1,2,3\n", "line 1: two columns are named 'a'"),
        ("\na,b\n1,2\n", "line 1: there are no column names"),
    ],
)
def test_names_the_line_that_is_not_csv(tmp_path: Path, text: str, where: str):
    path = tmp_path / "facts.csv"
    path.write_text(text)
    assert f"{path}, {where}" in refusal(str(path))


def test_reads_csv_with_any_line_ending_and_unnamed_columns(tmp_path: Path):
    path = tmp_path / "facts.csv"
    for end in ("\n", "\r\n", "\r"):
        path.write_text(f"a,b,,{end}1,2,,{end}3,4,,{end}", newline="")
        assert list(open_rows(str(path))) == [{"a": "1", "b": "2", "": ""}, {"a": "3", "b": "4", "": ""}]


def test_a_csv_row_with_a_surplus_comma_is_rejected(tmp_path: Path):
    """It does not become a fact made from the cells before the comma."""
    path = tmp_path / "facts.csv"
    path.write_text(
        "prompt,subject,target_true,target_false\nIn Spain it is,Spain,hot,cold\n"
        "In Spain it is,Spain,hot,dry,cold\nIn Spain it is,Spain,hot\n"
    )
    table = read_facts(open_rows(str(path)))
    assert [fact.row for fact in table.facts] == [0]
    assert [row.reason.split(";")[0] for row in table.rejected] == [
        "it has more cells than there are columns",
        "'target_false' is missing",
    ]


def test_parquet_cells_of_any_type_are_read_or_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "facts.parquet"
    pq.write_table(pa.table({"prompt": pa.array([b"The"], pa.binary()), "subject": [["The"]]}), path)
    assert list(open_rows(str(path))) == [{"prompt": b"The", "subject": ["The"]}]
    for column in (
        pa.array([b"\xff"], pa.binary()).view(pa.string()),
        pa.array([2**31 - 1], pa.date32()),
        pa.array([0], pa.timestamp("s", tz="Nowhere/Land")),
    ):
        pq.write_table(pa.table({"a": column}), path)
        assert f"{path}: not a complete parquet file (" in refusal(str(path))


@pytest.mark.parametrize("error", [OSError, ValueError, datasets.exceptions.DatasetGenerationError])
def test_names_a_hub_data_set_that_is_broken(monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    def fail(name: str, split: str) -> None:
        raise error("it is broken\nin many ways")

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda name: ["train"])
    assert "no data set 'some/body' could be loaded from the hub (it is broken); check" in refusal("some/body")


def test_names_a_hub_data_set_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "no data set 'nobody/nothing' could be loaded from the hub" in refusal("nobody/nothing")
