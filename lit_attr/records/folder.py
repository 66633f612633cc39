"""The folder a run writes to: what is done in it, of which settings, and by whom."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Rejected
from lit_attr.records.encoding import (
    FORMAT_VERSION,
    MANIFEST_FORMAT,
    check_header,
    read_batch,
    read_json,
    write_bytes,
    write_json,
)
from lit_attr.records.lock import RunLock

GOES_ON = "what is there is whole, and the same command goes on once this is mended"
LIBRARIES = ("lit-attr", "torch", "transformers", "bitsandbytes", "lightning", "tokenizers")


class OutputFolder:
    """The folder one run writes to, and a later run of the same settings goes on in.

    Args:
        path: The folder. Nothing is made before `lock` and `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.batches = self.path / "batches"
        self.manifest = self.path / "manifest.json"
        self.rejected = self.path / "rejected.jsonl"
        self.summary = self.path / "summary.json"
        self.figures = self.path / "figures"
        self._lock = RunLock(self.path)

    def lock(self) -> str:
        """Keeps other runs out until `unlock`, and returns the run's name for its other processes to `join`.

        Raises:
            UserError: Another run is at work in the folder, or it cannot be made.
        """
        with _telling(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            run = self._lock.acquire()
            # What a process that was killed left half-written; nobody else writes now.
            for left in (*self.path.glob(".*.tmp"), *self.batches.glob(".*.tmp")):
                left.unlink()
        return run

    def join(self, run: str, rank: int) -> None:
        """Lets another process of a run write too.

        Raises:
            UserError: The process that has locked the folder is gone.
        """
        with _telling(self.path):
            self._lock.join(run, rank)

    def expect(self, processes: int) -> None:
        """Has it noticed when one of so many processes, which have all locked or joined, is gone."""
        self._lock.expect(processes)

    def finish(self) -> None:
        """Waits, for as long as it takes, until every process of the run has written what it has to write.

        Raises:
            UserError: One is gone before it was done.
        """
        with _telling(self.path):
            self._lock.finish()

    def unlock(self) -> None:
        """Lets other runs in."""
        self._lock.release()

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares the settings of what is here with those of this run.

        Raises:
            UserError: They differ in something that changes a number, or what is here is not readable.
        """
        with _telling(self.path):
            written = read_json(self.manifest) if self.manifest.exists() else None
        if written is None:
            if any(self.batches.glob("*.json")):
                raise UserError(f"writer.output_dir: {self.path} has batches but no manifest; give another folder")
            return
        check_header(written, self.manifest, MANIFEST_FORMAT)
        if not all(isinstance(written.get(group), dict) for group in settings):
            raise UserError(f"{self.manifest}: it lacks {' or '.join(settings)}; give another folder")
        for group, values in settings.items():
            for name, value in values.items():
                before = written[group].get(name)
                # The same rows from another place are the same rows: `content` tells.
                if before != value and (group, name) != ("data", "source"):
                    raise UserError(
                        f"writer.output_dir: {self.path} was written with {group}.{name} {before!r}, this run has "
                        f"{value!r}; give another folder, or writer.overwrite: true to start afresh"
                    )

    def open(self, settings: Mapping[str, Mapping[str, Any]], rejected: Iterable[Rejected]) -> None:
        """Writes the manifest, where there is none, and the refused rows. Needs the lock."""
        with _telling(self.path):
            self.batches.mkdir(parents=True, exist_ok=True)
            if not self.manifest.exists():
                write_json(
                    self.manifest,
                    {
                        "format": MANIFEST_FORMAT,
                        "version": FORMAT_VERSION,
                        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                        **settings,
                        "libraries": {name: _version(name) for name in LIBRARIES},
                    },
                )
            write_bytes(self.rejected, b"".join(_json_line(row) for row in rejected))

    def move_aside(self) -> None:
        """Puts an earlier run's files into a folder of their own beside the new ones."""
        known = [
            path
            for path in (self.batches, self.manifest, self.rejected, self.summary, self.figures)
            if path.exists()
        ]
        if known:
            with _telling(self.path):
                prefix = datetime.now().strftime("replaced-%Y%m%d-%H%M%S-")
                aside = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))
                for path in known:
                    path.rename(aside / path.name)

    def write_batch(self, first: Contrast, record: Mapping[str, Any]) -> None:
        """Writes a batch file, whole or not at all.

        Args:
            first: Its first contrast, which it is named by.
            record: Its content, as `batch_record` makes it.

        Raises:
            UserError: It cannot be written, it has been, or another process of the run is gone.
        """
        path = self.batches / f"{_file_stem(first.fact.id)}-{first.step}.json"
        with _telling(self.path):
            self._lock.check()
            if path.exists():
                raise UserError(
                    f"data.source: id {first.fact.id!r}, step {first.step}, came twice in one run; give "
                    "every fact an id of its own, and every process its own share of them"
                )
            write_json(path, record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, whole or not at all."""
        with _telling(self.path):
            write_json(self.summary, summary)

    def write_config(self, settings: str) -> None:
        """Writes the command line's settings, whole or not at all."""
        with _telling(self.path):
            write_bytes(self.path / "config.yaml", settings.encode())

    def add_rejected(self, rejected: Iterable[Rejected]) -> None:
        """Appends refused rows, all or none; several processes may at once."""
        lines = b"".join(_json_line(row) for row in rejected)
        with _telling(self.path), self.rejected.open("ab", buffering=0) as stream:
            written = stream.write(lines)
            if written < len(lines):
                stream.truncate(stream.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_batches(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The batch files and the objects in them.

        Raises:
            UserError: A file is not what its format says, see `read_batch`, or cannot be read.
        """
        for path in sorted(self.batches.glob("*.json")):
            with _telling(self.path):
                record = read_batch(path)
            yield path, record

    def read_manifest(self) -> dict[str, Any]:
        """What was written, and by which settings."""
        return read_json(self.manifest)

    def read_summary(self) -> dict[str, Any]:
        """The summary of an earlier run; empty where there is none."""
        return read_json(self.summary) if self.summary.exists() else {}

    def count_rejected(self) -> int:
        """How many rows were refused."""
        return self.rejected.read_bytes().count(b"\n")


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"writer.output_dir: {folder} cannot be written to ({error.strerror or error}); {GOES_ON}"
        ) from error


def _json_line(row: Rejected) -> bytes:
    # A row may hold what UTF-8 cannot write (lone surrogates).
    clean = [v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in row]
    return orjson.dumps(dict(zip(row._fields, clean, strict=True)), option=orjson.OPT_APPEND_NEWLINE)


def _file_stem(contrast_id: int | str) -> str:
    # Text from the data never becomes a path.
    if isinstance(contrast_id, int):
        return f"{contrast_id:08d}"
    return hashlib.sha256(contrast_id.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
