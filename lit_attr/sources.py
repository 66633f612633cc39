"""Where rows come from: the shipped sample, a local file, a hub data set, or an iterable of rows."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lit_attr.errors import UserError

Row = Mapping[str, Any]

SAMPLE = "sample"
SAMPLE_FILE = Path(__file__).parent / "assets" / "sample_facts.jsonl"
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


def open_rows(source: str | Iterable[Row], *, split: str | None = None) -> Iterable[Row]:
    """The rows of a source, read as they are asked for.

    Args:
        source: `sample`; a .json, .jsonl, .csv or .parquet file, with .gz after it or not; the name of a data
            set on the Hugging Face hub; or the rows themselves, such as a `datasets.Dataset`.
        split: Which split of a hub data set; the only one, or `train`, where None.

    Raises:
        UserError: There is no such file or data set, or it cannot be read as what its name says.
    """
    if not isinstance(source, str):
        return source
    path = Path(source)
    is_file = source == SAMPLE or _suffix(path) in FILE_SUFFIXES
    if is_file and split is not None:
        raise UserError(f"data.split: {split!r} is for hub data sets; {source} is none")
    if source == SAMPLE:
        return _file_rows(SAMPLE_FILE)
    if is_file:
        if not path.is_file():
            raise UserError(f"data.source: there is no file {source}; check the path")
        return _file_rows(path)
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise UserError(
            f"data.source: {source} is neither a hub name nor a file ending in "
            f"{', '.join(FILE_SUFFIXES)} (.gz or not); rename or convert it"
        )
    return _hub_rows(source, split)


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _file_rows(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        else:
            with _open_text(path) as stream:
                yield from _TEXT_READERS[suffix](stream, path)
    except UnicodeDecodeError as error:
        raise UserError(f"data.source: {path} is not UTF-8 ({error.reason}); convert it") from error
    except (OSError, EOFError) as error:
        raise UserError(
            f"data.source: {path} cannot be read ({error}); it may be cut short or not what it says"
        ) from error


def _open_text(path: Path) -> TextIO:
    # newline="" is what csv asks for; JSON does not mind.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _jsonl_rows(stream: TextIO, path: Path) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _row(_parse_json(line, path, number), path, f"line {number}")


def _json_rows(stream: TextIO, path: Path) -> Iterator[Row]:
    rows = _parse_json(stream.read(), path)
    if not isinstance(rows, list):
        raise UserError(f"data.source: {path} is not a list of rows; one row a line goes into a .jsonl file")
    for number, row in enumerate(rows):
        yield _row(row, path, f"row {number}")


def _csv_rows(stream: TextIO, path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(stream)
    try:
        for row in reader:
            yield {str(column): value for column, value in row.items()}
    except csv.Error as error:
        raise UserError(
            f"data.source: {path}, line {reader.line_num}: not CSV ({error}); mend the line"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream if path.suffix != ".gz" else pa.BufferReader(stream.read())
            for batch in pq.ParquetFile(content).iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"data.source: {path} is not a whole parquet file ({_first_line(error)})") from error


_TEXT_READERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line if line is not None else getattr(error, "lineno", 1)
        what = getattr(error, "msg", None) or _first_line(error)
        mend = "one row a line goes into a .jsonl file" if what == "Extra data" else "mend the line"
        raise UserError(f"data.source: {path}, line {at}: not JSON ({what}); {mend}") from error


def _row(value: Any, path: Path, where: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"data.source: {path}, {where}: a {type(value).__name__}, not a row of named columns")
    return value


def _hub_rows(name: str, split: str | None) -> Iterable[Row]:
    # Imported here: it takes most of a second, and the sample and files do without it.
    import datasets

    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name)
            split = splits[0] if len(splits) == 1 else "train"
        rows: Iterable[Row] = datasets.load_dataset(name, split=split)
        return rows
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data.source: no data set {name!r} could be loaded from the hub ({_first_line(error)}); "
            f"check the name and the network, or give a file ending in {', '.join(FILE_SUFFIXES)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
