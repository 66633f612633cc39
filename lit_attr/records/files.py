"""Files that are written whole or not at all, and read against their format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.records.schema import (
    BATCH_FORMAT,
    EXACT_FORMAT,
    FORMAT_VERSION,
    BatchRecord,
    ExactRecord,
    Example,
)

Record = TypeVar("Record", BatchRecord, ExactRecord)


def read_batch(path: Path) -> BatchRecord:
    """Reads a batch file, with the scores as float64 arrays of layers × tokens.

    Raises:
        UserError: The file has another format or version, lacks a field, or has a shape or a number that its
            format does not allow.
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
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); move it away") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; move it away")
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
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=record_fields))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, even if the machine stops in between."""
    # In the same folder, since a rename is atomic only within a file system; hidden, so that no reader takes it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def record_fields(record: msgspec.Struct) -> dict[str, Any]:
    """A record's fields in their order, without those that are not set."""
    fields = msgspec.structs.asdict(record)
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def _to_array(_: type, rows: Any) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.array(rows, dtype=np.float64)
    # NumPy takes null as NaN.
    if not np.isfinite(values).all():
        raise ValueError("a number is not finite")
    return values


_BATCH_DECODER = msgspec.json.Decoder(BatchRecord, dec_hook=_to_array)
_EXACT_DECODER = msgspec.json.Decoder(ExactRecord, dec_hook=_to_array)


def _read(
    path: Path, decoder: msgspec.json.Decoder[Record], wanted: str, check: Callable[[Record], None]
) -> Record:
    content = path.read_bytes()
    try:
        record = decoder.decode(content)
        check(record)
    except (msgspec.ValidationError, ValueError) as error:
        # The decoder names the first difference that it finds; another version is the better reason.
        check_header(read_json(path), path, wanted)
        raise UserError(f"{path}: not a whole file of {wanted} ({error}); move it away and run again") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); move it away and run again") from error
    return record


def _check_batch(record: BatchRecord) -> None:
    for example in record.examples:
        tokens = len(example.tokens)
        if len(example.roles) != tokens:
            raise ValueError(f"id {example.id!r} has {tokens} tokens and {len(example.roles)} roles")
        start, stop = example.subject_span
        if not start < stop <= tokens:
            raise ValueError(f"id {example.id!r} has {tokens} tokens and its subject at {start} to {stop}")
        for component, scores in example.scores.items():
            _check_shape(example, f"{component} sum", scores.sum, (len(record.layers), tokens))
            if scores.l2 is not msgspec.UNSET:
                _check_shape(example, f"{component} l2", scores.l2, (len(record.layers), tokens))


def _check_shape(example: Example, what: str, values: NDArray[np.float64], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise ValueError(f"id {example.id!r} has {what} scores of shape {values.shape}, not {shape}")


def _check_exact(record: ExactRecord) -> None:
    for component, effects_LT in record.effects.items():
        if effects_LT.ndim != 2 or len(effects_LT) != len(record.layers):
            raise ValueError(f"id {record.id!r} has {component} effects of shape {effects_LT.shape}")
