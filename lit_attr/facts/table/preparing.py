"""From a source of rows to its table: found in the cache, or made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lit_attr.errors import warn_about
from lit_attr.facts.rows import Read, Reading
from lit_attr.facts.sources import local_file
from lit_attr.facts.table.building import Built, build
from lit_attr.facts.table.cache import TableCache, Tokenised, UnusableCacheError, Write
from lit_attr.facts.table.contrast_table import ContrastTable
from lit_attr.facts.table.fingerprints import file_fingerprint, fingerprint
from lit_attr.facts.table.parts import Making
from lit_attr.facts.table.stored_reads import StoredReads

# Fewer rows are tokenised in seconds, in each process, and leave no files.
SMALL_ROWS = 10_000
SMALL_BYTES = 2**20
# Beyond these the one process that reads rows is what takes the time.
MOST_WORKERS = 16
FOLDER = "lit_attr"


class Caching(NamedTuple):
    """Where tables are kept.

    Attributes:
        folder: The folder of caches; None for that of `datasets`.
        in_memory: Whether nothing is kept.
        workers: How many processes tokenise; None for as many as there are cores.
        small_rows: Fewer rows than this are not kept.
        small_bytes: Nor are those of a smaller file.
    """

    folder: str | None = None
    in_memory: bool = False
    workers: int | None = None
    small_rows: int = SMALL_ROWS
    small_bytes: int = SMALL_BYTES


class Source(NamedTuple):
    """The rows of a source.

    Attributes:
        reading: How they are read.
        reads: Reads them.
        is_small: Whether they are few.
        fingerprint: A hash of them.
    """

    reading: Reading
    reads: Callable[[], Iterable[Read]]
    is_small: bool
    fingerprint: Callable[[], str]

    @classmethod
    def of(
        cls, source: object, opened: Callable[[], Iterable[Mapping[str, Any]]], reading: Reading, caching: Caching
    ) -> Source:
        """A source; where it has no fingerprint of its own, all of its rows are read.

        Args:
            source: The source, see `open_rows`.
            opened: Opens it.
            reading: How its rows are read.
            caching: What counts as small.

        Raises:
            UserError: See `open_rows`, and `Reading.each`.
        """
        rows: Any = opened()
        few = reading.limit is not None and reading.limit < caching.small_rows and not reading.with_donors
        path = local_file(source)
        if path is not None:
            is_small = few or path.stat().st_size < caching.small_bytes
            return cls(reading, lambda: reading.each(opened()), is_small, lambda: file_fingerprint(path))
        library = sys.modules.get("datasets")
        # A transform of the user's own may do anything.
        if library is not None and isinstance(rows, library.Dataset) and rows.format["type"] != "custom":
            is_small = few or len(rows) < caching.small_rows
            return cls(reading, lambda: reading.each(rows), is_small, lambda: str(rows._fingerprint))
        stored = StoredReads(reading.each(rows))
        return cls(reading, lambda: stored, len(stored) < caching.small_rows, lambda: stored.fingerprint)


def prepare(
    source: Source,
    making: Making,
    caching: Caching,
    announce: Callable[[str], None],
) -> Tokenised:
    """The table of a source, found or made.

    Args:
        source: The source.
        making: How contrasts are made of them.
        caching: Where tables are kept.
        announce: Is given a line where making the table will take a while.

    Raises:
        ArgumentError: See `build`; or the disk of the cache is full, as a fault of `cache_dir`.
        UserError: A file cannot be read.
    """
    if source.is_small or caching.in_memory or not _is_caching_enabled():
        return _in_memory(source, making)
    cache = TableCache(_folder(caching) / FOLDER)
    name = fingerprint(source.fingerprint(), source.reading, making)
    if (found := cache.find(name)) is not None:
        return found
    workers = min(_cores(), MOST_WORKERS) if caching.workers is None else caching.workers
    announce(
        f"The rows are tokenised by {workers} processes into {cache.folder / name}, where later runs find them."
    )

    def make(folder: Path, write: Write) -> Built:
        return build(source.reads(), making, write, folder=folder, workers=workers)

    try:
        return cache.find_or_make(name, make, making.seed)
    except UnusableCacheError as error:
        reason = f"{error}, so each process tokenises all rows in memory; give a folder that can be written to"
        warn_about("cache_dir", reason)
        return _in_memory(source, making)


def _in_memory(source: Source, making: Making) -> Tokenised:
    batches: list[pa.RecordBatch] = []
    built = build(source.reads(), making, batches.append)
    contrasts = ContrastTable(batches, content=built.content, orders={making.seed: built.order_M})
    return Tokenised(contrasts, built.rejected, built.spaces)


def _is_caching_enabled() -> bool:
    # Who has not imported it has not disabled anything.
    library = sys.modules.get("datasets")
    return library is None or bool(library.is_caching_enabled())


def _folder(caching: Caching) -> Path:
    if caching.folder is not None:
        return Path(caching.folder).expanduser()
    # Imported here: it takes most of a second.
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
