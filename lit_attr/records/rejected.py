"""The refused rows of a run: `rejected.jsonl`, one JSON object a line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import orjson

from lit_attr.facts.rows import Rejected
from lit_attr.records.files import write_bytes


def replace_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Writes the rows that the data refuses, and keeps what earlier runs refused while the model ran."""
    content = b"".join(map(_line, (*rejected, *read_refused(path))))
    # A finished folder stays as it is.
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def append_rejected(path: Path, rejected: Iterable[Rejected]) -> None:
    """Appends refused rows, all or none; several processes may do so at once.

    Raises:
        OSError: The file system takes no more.
    """
    lines = b"".join(map(_line, rejected))
    with path.open("ab", buffering=0) as stream:
        written = stream.write(lines)
        if written < len(lines):
            stream.truncate(stream.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_refused(path: Path) -> list[Rejected]:
    """The contrasts that were refused while the model ran: those with a step. A damaged line is left out."""
    return [row for row in _read(path) if row.step is not None]


def count_rejected(path: Path) -> int:
    """The number of refused rows and contrasts."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


class _Line(msgspec.Struct, omit_defaults=True):
    row: int
    id: int | str
    reason: str
    step: int | None = None


_DECODER = msgspec.json.Decoder(_Line)


def _read(path: Path) -> Iterator[Rejected]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        try:
            read = _DECODER.decode(line)
        except msgspec.DecodeError:
            continue
        yield Rejected(read.row, read.id, read.reason, read.step)


def _line(row: Rejected) -> bytes:
    # A row may hold what UTF-8 cannot write (lone surrogates).
    clean = {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in row._asdict().items()
        if name != "step" or value is not None
    }
    return orjson.dumps(clean, option=orjson.OPT_APPEND_NEWLINE)
