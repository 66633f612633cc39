"""Files that are written whole or not at all, and read against their format."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from lit_attr.errors import ArgumentError, UserError
from lit_attr.records.schema import (
    BATCH_FORMAT,
    EXACT_FORMAT,
    FORMAT_VERSION,
    BatchRecord,
    ExactRecord,
    Example,
)
from lit_attr.text import cut

Record = TypeVar("Record", BatchRecord, ExactRecord)

DIGEST_DIGITS = 32
MAX_SHOWN = 100
# Of a file that is not written yet. Whatever else is in a run's folder is not ours to remove.
_TEMPORARY = re.compile(r"\..+\.\d+\.lit-attr\.tmp")


def read_batch(path: Path) -> BatchRecord:
    """Reads a batch file, with the scores as float64 arrays of layers × tokens.

    Raises:
        UserError: The file cannot be read, has another format or version, lacks a field, or has a shape or a
            number that its format does not allow.
    """
    return _read(path, _BATCH_DECODER, BATCH_FORMAT, _check_batch)


def read_exact(path: Path) -> ExactRecord:
    """Reads a file of exact effects, with the effects as float64 arrays of layers × tokens.

    Raises:
        UserError: See :func:`read_batch`.
    """
    return _read(path, _EXACT_DECODER, EXACT_FORMAT, _check_exact)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: The file holds something else.
    """
    return _parsed(path.read_bytes(), path)


def read_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror or error}); run again") from error


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); move it away") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; move it away")
    return value


def read_sealed(path: Path, wanted: str) -> dict[str, Any]:
    """Reads a JSON object that :func:`write_sealed` wrote.

    Raises:
        UserError: The file cannot be read, holds something else, has another format or version, or was changed
            since.
    """
    content = read_content(path)
    value = _parsed(content, path)
    check_header(value, path, wanted)
    check_seal(content, path)
    return value


def check_header(value: Mapping[str, Any], path: Path, wanted: str) -> None:
    """Checks an object's format and version.

    Raises:
        UserError: It has another format, or a version that this package does not read.
    """
    version = value.get("version")
    if value.get("format") != wanted or not isinstance(version, int):
        raise UserError(f"{path}: not a file of the format {wanted}; move it away")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: of format version {version}, and this lit-attr knows {FORMAT_VERSION}; upgrade lit-attr"
        )
    if version < FORMAT_VERSION:
        raise UserError(
            f"{path}: of format version {version}, and this lit-attr reads only {FORMAT_VERSION}; give another "
            "folder, or use the lit-attr that wrote it"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; arrays and records are written as what they hold."""
    write_bytes(path, _dumped(value))


def write_sealed(path: Path, value: Any) -> None:
    """Writes a JSON object whose last field, `digest`, is a hash of all that precedes it."""
    write_bytes(path, sealed(value))


def sealed(value: Any) -> bytes:
    """A JSON object whose last field, `digest`, is a hash of all that precedes it."""
    body = _dumped(value)[:-1]
    return body + _seal(body)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, even if the machine stops in between."""
    # In the same folder, since a rename is atomic only within a file system; hidden, so that no reader takes it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.lit-attr.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_first(path: Path, content: bytes) -> None:
    """Writes a file unless it is there already; of several processes, one succeeds."""
    candidate = path.with_name(f".{path.name}.first.{os.getpid()}.lit-attr.tmp")
    write_bytes(candidate, content)
    try:
        os.link(candidate, path)
    except FileExistsError:
        pass
    except OSError:
        # Some file systems of clouds and memory cards have no links. The last of several processes wins there, all
        # within the time that they take to write the same file.
        if not path.exists():
            candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporary(folder: Path) -> None:
    """Removes the files that killed processes had not finished. No other process may write to the folder.

    Raises:
        ArgumentError: See :func:`own_files`.
    """
    for path in own_files(folder, _TEMPORARY):
        path.unlink()


def own_files(folder: Path, names: re.Pattern[str], *, strict: bool = True) -> Iterator[Path]:
    """The files of a folder that have a name which only lit-attr gives, in the order of their names.

    Args:
        folder: The folder. Symbolic links in it are not followed.
        names: What matches such a name, whole.
        strict: Refuse a folder or a symbolic link of such a name; otherwise it is left alone.

    Raises:
        ArgumentError: There is one, as a fault of `output_dir`.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if names.fullmatch(path.name):
            if strict:
                check_own(path)
            if path.is_file() and not path.is_symlink():
                yield path


def check_own(path: Path, *, is_folder: bool = False) -> None:
    """Checks that a place of a run's folder has a file of ours (or a folder), or nothing.

    Raises:
        ArgumentError: There is something else, as a fault of `output_dir`.
    """
    found = "a symbolic link" if path.is_symlink() else "a folder" if path.is_dir() else "a file"
    if os.path.lexists(path) and found != ("a folder" if is_folder else "a file"):
        raise ArgumentError("output_dir", f"{path} is {found}; move it away or give another folder")


def file_name(contrast_id: int | str, step: int) -> str:
    """The name of the file of a contrast. Text from the data never becomes a path."""
    if isinstance(contrast_id, int):
        return f"{contrast_id:08d}-{step}.json"
    return f"{hashlib.sha256(contrast_id.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}-{step}.json"


def check_name(path: Path, contrast_id: int | str, step: int) -> None:
    """Checks that a file has the name of its first contrast.

    Raises:
        UserError: It has another name.
    """
    wanted = file_name(contrast_id, step)
    if path.name != wanted:
        raise UserError(
            f"{path}: id: a file that begins with id {briefly(contrast_id)}, step {step}, is named {wanted}; this "
            "one is a copy or was renamed; move it away and run again"
        )


def check_of_run(
    path: Path, record: BatchRecord | ExactRecord, components: set[str], manifest: Mapping[str, Any]
) -> None:
    """Checks that a file is of the run whose manifest is given. A stranger's module names no settings.

    Raises:
        UserError: It is of another one.
    """
    settings = {**manifest["model"]}
    if isinstance(settings.get("component"), str):
        # In the manifest they are in the order that the user gave.
        settings["component"] = ", ".join(sorted(settings["component"].split(", ")))
    found = {
        "rule": record.rule,
        "layers": record.layers,
        "component": ", ".join(sorted(components)),
    }
    for name in found:
        if name in settings:
            _check_of_manifest(path, name, found[name], settings[name])
    check_run(path, record.run, manifest)


def check_run(path: Path, run: object, manifest: Mapping[str, Any]) -> None:
    """Checks the name of the run in a file.

    Raises:
        UserError: It is not the one in the manifest.
    """
    _check_of_manifest(path, "run", run if isinstance(run, str) else None, manifest["run"])


def _check_of_manifest(path: Path, name: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise UserError(
            f"{path}: {name}: it is {briefly(found)}, and in manifest.json {briefly(wanted)}: the file is of "
            "another run; move it away and run again"
        )


def briefly(value: object) -> str:
    """A value as Python writes it, in one line that fits into a message."""
    return cut(repr(value), MAX_SHOWN)


def check_path(argument: str, path: Path) -> None:
    """Checks that a path can be written into records and logs, and named in messages.

    Raises:
        ArgumentError: It has bytes that are not UTF-8, or a NUL.
    """
    text = str(path)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ArgumentError(argument, f"{briefly(text)} is not a path in UTF-8 without NUL; give another")


def record_fields(record: msgspec.Struct) -> dict[str, Any]:
    """A record's fields in their order, without those that are not set."""
    fields = msgspec.structs.asdict(record)
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def _dumped(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=record_fields)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(body: bytes | memoryview) -> bytes:
    """The end of a JSON object: the field `digest`, given all bytes before it."""
    return b',"digest":"%b"}' % hashlib.sha256(body).hexdigest()[:DIGEST_DIGITS].encode()


_SEAL_BYTES = len(_seal(b""))


def check_seal(content: bytes, path: Path) -> None:
    """Checks that the bytes of a file are those that :func:`write_sealed` wrote.

    Raises:
        UserError: They were changed since.
    """
    body, seal = memoryview(content)[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    if _seal(body) != seal:
        raise UserError(
            f"{path}: digest: the file is not as it was written, and its content may have been changed; move it "
            "away and run again"
        )


def _to_array(_: type, rows: Any) -> NDArray[np.float64]:
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list):
        raise ValueError("not a list of lists of numbers")
    width = len(rows[0])
    # One flat list takes NumPy less time than nested ones.
    flat: list[Any] = []
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            raise ValueError("its rows are not lists of the same length")
        flat += row
    values: NDArray[np.float64] = np.array(flat, dtype=np.float64).reshape(len(rows), width)
    # NumPy takes null as NaN. Only if all numbers are finite, their product is: faster than a look at each.
    if not isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
        raise ValueError("a number is not finite")
    return values


_BATCH_DECODER = msgspec.json.Decoder(BatchRecord, dec_hook=_to_array)
_EXACT_DECODER = msgspec.json.Decoder(ExactRecord, dec_hook=_to_array)


def _read(
    path: Path, decoder: msgspec.json.Decoder[Record], wanted: str, check: Callable[[Record], None]
) -> Record:
    content = read_content(path)
    try:
        record = decoder.decode(content)
        check(record)
    except ValueError as error:
        # The decoder names the first difference that it finds; another version, or no JSON, is the better reason.
        check_header(read_json(path), path, wanted)
        raise UserError(f"{path}: not a whole file of {wanted} ({error}); move it away and run again") from error
    check_seal(content, path)
    # Whoever writes the record again seals it again.
    record.digest = msgspec.UNSET
    return record


def _check_batch(record: BatchRecord) -> None:
    for example in record.examples:
        tokens = len(example.tokens)
        if len(example.roles) != tokens:
            raise ValueError(f"id {briefly(example.id)} has {tokens} tokens and {len(example.roles)} roles")
        start, stop = example.subject_span
        if not start < stop <= tokens:
            raise ValueError(f"id {briefly(example.id)} has {tokens} tokens and its subject at {start} to {stop}")
        for component, scores in example.scores.items():
            _check_shape(example, f"{component} sum", scores.sum, (len(record.layers), tokens))
            if scores.l2 is not msgspec.UNSET:
                _check_shape(example, f"{component} l2", scores.l2, (len(record.layers), tokens))


def _check_shape(example: Example, what: str, values: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise ValueError(f"id {briefly(example.id)} has {what} scores of shape {values.shape}, not {shape}")


def _check_exact(record: ExactRecord) -> None:
    for component, effects_LT in record.effects.items():
        if effects_LT.ndim != 2 or len(effects_LT) != len(record.layers):
            raise ValueError(f"id {briefly(record.id)} has {component} effects of shape {effects_LT.shape}")
