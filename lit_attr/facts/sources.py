"""Where rows come from: the shipped sample, a local file, a hub data set, or an iterable of rows."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from lit_attr.errors import ArgumentError, UserError, shown
from lit_attr.facts.cells import printable

Row = Mapping[str, Any]

SAMPLE = "sample"
SAMPLE_FILE = Path(__file__).parents[1] / "assets" / "sample_facts.jsonl"
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
PARQUET_ROWS_AT_A_TIME = 4096
BLOCK_BYTES = 2**20
# More than a row takes whose texts are as long as they may be.
MAX_LINE_BYTES = 2**24
# What is not read row by row: a .json file, or a .parquet file in a .gz.
MAX_FILE_BYTES = 2**29


def open_rows(source: Any, *, split: str | None = None, revision: str | None = None) -> Iterable[Row]:
    """Opens a source of rows; a file is read while its rows are iterated over.

    Args:
        source: `sample`; a .json, .jsonl, .csv or .parquet file, optionally with .gz after it; a folder that
            `save_to_disk` wrote; the name of a data set on the Hugging Face hub; or the rows themselves: an
            iterable of them, a pandas `DataFrame`, or a data set of `datasets` in any format.
        split: Which split of a data set that has several; None takes the only one, or `train` of a hub data set.
        revision: Branch, tag or commit of a hub data set; None takes its main branch.

    Raises:
        ArgumentError: There is no such file or data set, or a setting is given that is not for this source.
        UserError: While iterating, if the file is not what its suffix says, or has no rows.
    """
    if not isinstance(source, str):
        _refuse_for("hub data sets", f"a {type(source).__name__}", revision=revision)
        return _rows_of(source, split, f"a {type(source).__name__}")
    if "\0" in source:
        raise ArgumentError("source", f"{shown(source)} has a NUL character in it; check the path")
    path, name = Path(source), printable(source)
    if source == SAMPLE or _suffix(path) in FILE_SUFFIXES:
        _refuse_for("hub data sets", name, split=split, revision=revision)
        if source != SAMPLE and not path.is_file() and not _is_saved(path):
            raise ArgumentError("source", f"there is no file {name}; check the path")
    if _is_saved(path):
        _refuse_for("hub data sets", name, revision=revision)
        return _saved_rows(path, split)
    if (file := local_file(source)) is not None:
        return _file_rows(file)
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        suffixes = ", ".join(FILE_SUFFIXES)
        reason = (
            f"{name} is neither a hub name nor a file ending in {suffixes} (.gz or not), nor a folder that "
            "save_to_disk wrote; rename or convert it"
        )
        raise ArgumentError("source", reason)
    return _hub_rows(source, split, revision)


def local_file(source: object) -> Path | None:
    """The file that a source is; None where it is none."""
    if not isinstance(source, str) or "\0" in source:
        return None
    if source == SAMPLE:
        return SAMPLE_FILE
    path = Path(source)
    return path if _suffix(path) in FILE_SUFFIXES and path.is_file() else None


def _refuse_for(kind: str, name: str, **settings: str | None) -> None:
    for setting, value in settings.items():
        if value is not None:
            raise ArgumentError(setting, f"{value!r} is for {kind}; {name} is not one")


def has_splits(source: object) -> bool:
    """Whether rows come by split, as in a `datasets.DatasetDict`; such a source is a mapping, but not a row."""
    # No such object exists where its library has not been imported.
    library = sys.modules.get("datasets")
    return library is not None and isinstance(source, library.DatasetDict | library.IterableDatasetDict)


def _rows_of(source: Any, split: str | None, name: str) -> Iterable[Row]:
    """The rows of other libraries' tables, as dicts of Python values; any other iterable as it is."""
    if has_splits(source):
        splits = ", ".join(map(printable, source)) or "none"
        if split is None and len(source) != 1:
            raise ArgumentError("split", f"{name} has the splits {splits}; choose one")
        if split is not None and split not in source:
            raise ArgumentError("split", f"{name} has no split {split!r}; it has {splits}")
        return _rows_of(source[split if split is not None else next(iter(source))], None, name)
    _refuse_for("data sets with splits", name, split=split)
    datasets, pandas = sys.modules.get("datasets"), sys.modules.get("pandas")
    if pandas is not None and isinstance(source, pandas.DataFrame):
        if not source.columns.is_unique:
            repeated = str(source.columns[source.columns.duplicated()][0])
            raise ArgumentError("source", f"two columns are named {shown(repeated)}; rename one")
        # As Python has it: nothing is None, whatever the column's type makes of it.
        rows: Iterable[Row] = source.astype(object).where(source.notna(), None).to_dict("records")
        return rows
    if datasets is not None and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        # Tensors and arrays are other forms of the same values; a transform may be the user's own.
        is_own = isinstance(source, datasets.Dataset) and source.format["type"] == "custom"
        plain: Iterable[Row] = source if is_own else source.with_format(None)
        return plain
    iterable: Iterable[Row] = source
    return iterable


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` of a data set wrote the folder."""
    return (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()


def _saved_rows(path: Path, split: str | None) -> Iterable[Row]:
    import datasets

    try:
        source = datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder raises errors of pyarrow, of datasets, or any of Python's
        raise ArgumentError(
            "source", f"{printable(str(path))}: not a complete data set ({_first_line(error)}); save it again"
        ) from error
    return _rows_of(source, split, printable(str(path)))


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _file_rows(path: Path) -> Iterator[Row]:
    suffix, name = _suffix(path), printable(str(path))
    if suffix == ".parquet":
        rows = _parquet_rows(path, name)
    else:
        most = MAX_FILE_BYTES if suffix == ".json" else MAX_LINE_BYTES
        rows = _TEXT_READERS[suffix](_lines(path, name, most), name)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{name}: there are no rows; give a file that has some")


def _lines(path: Path, name: str, most: int) -> Iterator[str]:
    """The lines of a text file, with their ends. Decoding them one by one shows which one is at fault."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(_byte_lines(stream, most), start=1):
                if len(line) > most:
                    raise _too_long(f"{name}, line {number}", most)
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, line {number}: not UTF-8 ({error.reason}); convert it") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(name, f" after line {number}" if number else "", error) from error


def _open(path: Path) -> BinaryIO:
    # The type of gzip's files is not a BinaryIO by name.
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _byte_lines(stream: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines of a stream; the last is cut once it is longer than `most` bytes. No more than that is held."""
    parts: list[bytes] = []
    length = 0
    while length <= most and (block := stream.readline(BLOCK_BYTES)):
        parts.append(block)
        length += len(block)
        if block.endswith(b"\n") or b"\r" in block:
            lines = b"".join(parts).splitlines(keepends=True)
            # The block may have been cut within a line, or between \r and \n.
            rest = b"" if block.endswith(b"\n") else lines.pop()
            yield from lines
            parts, length = [rest], len(rest)
    yield from b"".join(parts).splitlines(keepends=True)


def _too_long(where: str, most: int) -> UserError:
    fix = "the file is not what its name says, or its lines have no ends"
    return UserError(f"{where}: more than {most // 2**20} MiB; {fix}")


def _unreadable(name: str, where: str, error: BaseException) -> UserError:
    return UserError(
        f"{name}: it cannot be read{where} ({_first_line(error)}); it may be incomplete, or not what its name says"
    )


def _jsonl_rows(lines: Iterator[str], name: str) -> Iterator[Any]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_json(line, name, number)


def _json_rows(lines: Iterator[str], name: str) -> Iterator[Any]:
    rows = _parse_json("".join(_bounded(lines, name, MAX_FILE_BYTES)), name)
    if not isinstance(rows, list):
        raise UserError(f"{name}: not a list of rows; name a file with one row a line .jsonl")
    yield from rows


def _bounded(lines: Iterator[str], where: str, most: int) -> Iterator[str]:
    length = 0
    for line in lines:
        length += len(line)
        if length > most:
            raise _too_long(where, most)
        yield line


def _csv_rows(lines: Iterator[str], name: str) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    line = 1
    length = 0

    def counted() -> Iterator[str]:
        # A quote that is not closed makes one row of all lines after it.
        nonlocal length
        for text in lines:
            length += len(text)
            if length > MAX_LINE_BYTES:
                raise _too_long(f"{name}, line {line}: the row that begins there", MAX_LINE_BYTES)
            yield text

    header = next(lines, None)
    delimiter, has_spaces = _csv_dialect(header or "")
    # Strict: otherwise an unclosed quote would swallow all the rows after it.
    reader = csv.DictReader(
        chain([] if header is None else [header], counted()),
        strict=True,
        delimiter=delimiter,
        skipinitialspace=has_spaces,
    )
    try:
        names = Counter(reader.fieldnames or ())
        repeated = [name for name, times in names.items() if name and times > 1]
        if repeated or reader.fieldnames == []:
            what = f"two columns are named {shown(repeated[0])}" if repeated else "there are no column names"
            raise UserError(f"{name}, line 1: {what}; fix the line")
        for row in reader:
            length = 0
            yield row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{name}, line {line}: not CSV ({error}) in the row that begins there; fix the row"
        ) from error


def _csv_dialect(header: str) -> tuple[str, bool]:
    """What separates the cells of a CSV file, by its first line, and whether a space follows it.

    Spreadsheets write semicolons where the comma is the decimal point.
    """
    try:
        (names,) = csv.reader([header]) if header.strip() else ([],)
        for delimiter in ";\t|":
            if len(names) == 1 and delimiter in names[0]:
                (names,) = csv.reader([header], delimiter=delimiter)
                return delimiter, _have_spaces(names)
    except (csv.Error, ValueError):  # the reader of the whole file says what is wrong with it
        return ",", False
    return ",", _have_spaces(names)


def _have_spaces(names: list[str]) -> bool:
    return len(names) > 1 and all(name.startswith(" ") for name in names[1:])


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(path) as stream:
            content: Any = stream
            if path.suffix == ".gz":
                whole = stream.read(MAX_FILE_BYTES + 1)
                if len(whole) > MAX_FILE_BYTES:
                    raise _too_long(name, MAX_FILE_BYTES)
                content = pa.BufferReader(whole)
            for batch in pq.ParquetFile(content).iter_batches(batch_size=PARQUET_ROWS_AT_A_TIME):
                yield from batch.to_pylist()
    except OSError as error:
        raise _unreadable(name, "", error) from error
    except UserError:
        raise
    except Exception as error:  # a damaged file raises errors of pyarrow or, within a cell, any of Python's
        raise UserError(
            f"{name}: not a complete parquet file ({_first_line(error)}); download or write it again"
        ) from error


_TEXT_READERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}


def _parse_json(text: str, name: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = error.msg
        fix = (
            "name a file with one row a line .jsonl"
            if what == "Extra data"
            else f"fix the {'line' if line else 'file'}"
        )
        raise UserError(f"{name}, line {line or error.lineno}: not JSON ({what}); {fix}") from error
    except (ValueError, RecursionError) as error:  # numbers that are too long, lists that are too deep
        at = f", line {line}" if line is not None else ""
        raise UserError(f"{name}{at}: not JSON ({_first_line(error)}); fix it") from error


def _hub_rows(name: str, split: str | None, revision: str | None) -> Iterable[Row]:
    # Imported here: it takes most of a second, and neither the sample nor files need it.
    import datasets

    at = {} if revision is None else {"revision": revision}
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name, **at)
            split = splits[0] if len(splits) == 1 else "train"
        rows: Iterable[Row] = datasets.load_dataset(name, split=split, **at)
        return rows
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        check = "check the name and the network" if revision is None else "check name, revision and network"
        raise ArgumentError(
            "source",
            f"no data set {name!r} could be loaded from the hub ({_first_line(error)}); "
            f"{check}, or give a file ending in {', '.join(FILE_SUFFIXES)}",
        ) from error


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    # It may quote bytes of the file.
    return line if line.isprintable() else repr(line)
