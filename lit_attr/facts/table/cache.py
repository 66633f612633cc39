"""Tables on disk: each made once for all processes of a machine, and found again by later runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from filelock import FileLock

from lit_attr.errors import ArgumentError
from lit_attr.facts.rows import Rejected
from lit_attr.facts.table.building import TABLE_SCHEMA, Built
from lit_attr.facts.table.contrast_table import ContrastTable, write_order

TABLE = "table.arrow"
# Written last: what is beside it is whole.
ABOUT = "about.json"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

Write = Callable[[pa.RecordBatch], None]


class Tokenised(NamedTuple):
    """The rows of a source, tokenised.

    Attributes:
        contrasts: The contrasts.
        rejected: Why there are not more.
        spaces: How many facts have a space before an answer that their rows do not have.
    """

    contrasts: ContrastTable
    rejected: list[Rejected]
    spaces: int


class TableCache:
    """A folder of tables.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Tokenised | None:
        """A table; None where there is none that is whole."""
        place = self.folder / name
        try:
            about: dict[str, Any] = json.loads((place / ABOUT).read_text())
            if (place / TABLE).stat().st_size != about["bytes"]:
                return None
            contrasts = ContrastTable.mapped(place / TABLE, about["content"])
            rejected = [Rejected(*each) for each in about["rejected"]]
            return Tokenised(contrasts, rejected, about["spaces"])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None

    def find_or_make(self, name: str, make: Callable[[Path, Write], Built], seed: int) -> Tokenised:
        """A table, made by one process where there is none, while others wait for it.

        A process that is killed lets the next one begin anew.

        Args:
            name: The table's name.
            make: Makes the table, given a folder for its parts and what writes its record batches.
            seed: The seed of its random order.

        Raises:
            UnusableCacheError: Nothing can be written to the folder.
            ArgumentError: The disk is full, as a fault of `cache_dir`; or see `make`.
        """
        if (found := self.find(name)) is not None:
            return found
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f"{name}.lock")
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise self._refused(error) from error
        try:
            if (found := self.find(name)) is None:
                try:
                    self._make(name, make, seed)
                except OSError as error:
                    raise self._refused(error) from error
                found = self.find(name)
        finally:
            lock.release()
        if found is None:
            raise UnusableCacheError(f"{self.folder / name} cannot be read back")
        return found

    def _make(self, name: str, make: Callable[[Path, Write], Built], seed: int) -> None:
        # What killed processes and damaged disks have left.
        for left in (*self.folder.glob(f".{name}.*.tmp"), self.folder / name):
            shutil.rmtree(left, ignore_errors=True)
        place = self.folder / f".{name}.{os.getpid()}.tmp"
        place.mkdir()
        try:
            parts = place / "parts"
            parts.mkdir()
            with (place / TABLE).open("wb") as sink:
                with pa.ipc.new_stream(sink, TABLE_SCHEMA) as writer:
                    built = make(parts, writer.write_batch)
                _settle(sink)
            shutil.rmtree(parts)
            write_order(place, seed, built.order_M)
            about = {
                "content": built.content,
                "rejected": built.rejected,
                "spaces": built.spaces,
                "bytes": (place / TABLE).stat().st_size,
            }
            with (place / ABOUT).open("w") as text:
                # Python's JSON, unlike others, keeps the lone surrogates that ids of refused rows may have.
                json.dump(about, text)
                _settle(text)
            place.rename(self.folder / name)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _refused(self, error: OSError | NotImplementedError) -> Exception:
        # Arrow's errors have their own words beside the number.
        number = error.errno if isinstance(error, OSError) else None
        reason = str(error) if number is None else os.strerror(number)
        if number in FULL:
            fix = "free some there, give another folder, or set keep_in_memory"
            return ArgumentError(
                "cache_dir", f"{self.folder} has no space left for tokenised rows ({reason}); {fix}"
            )
        return UnusableCacheError(f"{self.folder} cannot be written to ({reason})")


class UnusableCacheError(Exception):
    """Nothing can be kept in the folder of tables."""


def _settle(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())
