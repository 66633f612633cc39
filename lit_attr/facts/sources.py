"""Where rows come from: the shipped sample, a local file, a hub data set, or an iterable of rows."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_attr.errors import ArgumentError, UserError, shown

Row = Mapping[str, Any]

SAMPLE = "sample"
SAMPLE_FILE = Path(__file__).parents[1] / "assets" / "sample_facts.jsonl"
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
PARQUET_ROWS_AT_A_TIME = 4096


def open_rows(source: str | Iterable[Row], *, split: str | None = None) -> Iterable[Row]:
    """Opens a source of rows; a file is read while its rows are iterated over.

    Args:
        source: `sample`; a .json, .jsonl, .csv or .parquet file, optionally with .gz after it; the name of a data
            set on the Hugging Face hub; or the rows themselves, such as a `datasets.Dataset`.
        split: Which split of a hub data set; None takes the only one, or `train`.

    Raises:
        ArgumentError: There is no such file or data set, or a file is given a split.
        UserError: While iterating, if the file is not what its suffix says, or has no rows.
    """
    if not isinstance(source, str):
        return source
    path = Path(source)
    is_file = source == SAMPLE or _suffix(path) in FILE_SUFFIXES
    if is_file and split is not None:
        raise ArgumentError("split", f"{split!r} is for hub data sets; {source} is not one")
    if source == SAMPLE:
        return _file_rows(SAMPLE_FILE)
    if is_file:
        if not path.is_file():
            raise ArgumentError("source", f"there is no file {source}; check the path")
        return _file_rows(path)
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        suffixes = ", ".join(FILE_SUFFIXES)
        reason = (
            f"{source} is neither a hub name nor a file ending in {suffixes} (.gz or not); rename or convert it"
        )
        raise ArgumentError("source", reason)
    return _hub_rows(source, split)


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    rows = _parquet_rows(path) if suffix == ".parquet" else _TEXT_READERS[suffix](_lines(path), path)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: there are no rows; give a file that has some")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, with their ends. Decoding them one by one shows which one is at fault."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            lines = (line for block in stream for line in block.splitlines(keepends=True))
            for number, line in enumerate(lines, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, f" after line {number}" if number else "", error) from error


def _unreadable(path: Path, where: str, error: BaseException) -> UserError:
    return UserError(
        f"{path}: it cannot be read{where} ({_first_line(error)}); it may be incomplete, or not what its name says"
    )


def _jsonl_rows(lines: Iterator[str], path: Path) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_json(line, path, number)


def _json_rows(lines: Iterator[str], path: Path) -> Iterator[Any]:
    rows = _parse_json("".join(lines), path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of rows; name a file with one row a line .jsonl")
    yield from rows


def _csv_rows(lines: Iterator[str], path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Otherwise an unclosed quote would swallow all the rows after it.
    reader = csv.DictReader(lines, strict=True)
    line = 1
    try:
        names = Counter(reader.fieldnames or ())
        repeated = [name for name, times in names.items() if name and times > 1]
        if repeated or reader.fieldnames == []:
            what = f"two columns are named {shown(repeated[0])}" if repeated else "there are no column names"
            raise UserError(f"{path}, line 1: {what}; fix the line")
        for row in reader:
            yield row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not CSV ({error}) in the row that begins there; fix the row"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream if path.suffix != ".gz" else pa.BufferReader(stream.read())
            for batch in pq.ParquetFile(content).iter_batches(batch_size=PARQUET_ROWS_AT_A_TIME):
                yield from batch.to_pylist()
    except OSError as error:
        raise _unreadable(path, "", error) from error
    except Exception as error:  # a damaged file raises errors of pyarrow or, within a cell, any of Python's
        raise UserError(
            f"{path}: not a complete parquet file ({_first_line(error)}); download or write it again"
        ) from error


_TEXT_READERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg
        fix = (
            "name a file with one row a line .jsonl"
            if what == "Extra data"
            else f"fix the {'line' if line else 'file'}"
        )
        raise UserError(f"{path}, line {line or error.lineno}: not JSON ({what}); {fix}") from error
    except (ValueError, RecursionError) as error:  # numbers that are too long, lists that are too deep
        at = f", line {line}" if line is not None else ""
        raise UserError(f"{path}{at}: not JSON ({_first_line(error)}); fix it") from error


def _hub_rows(name: str, split: str | None) -> Iterable[Row]:
    # Imported here: it takes most of a second, and neither the sample nor files need it.
    import datasets

    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name)
            split = splits[0] if len(splits) == 1 else "train"
        rows: Iterable[Row] = datasets.load_dataset(name, split=split)
        return rows
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ArgumentError(
            "source",
            f"no data set {name!r} could be loaded from the hub ({_first_line(error)}); "
            f"check the name and the network, or give a file ending in {', '.join(FILE_SUFFIXES)}",
        ) from error


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    # It may quote bytes of the file.
    return line if line.isprintable() else repr(line)
