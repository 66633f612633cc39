"""The folder that a run writes to: what is done in it, with which settings, and by which processes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.rows import Rejected
from lit_attr.records.files import check_header, read_batch, read_exact, read_json, write_bytes, write_json
from lit_attr.records.lock import RunLock
from lit_attr.records.rejected import append_rejected, count_rejected, read_refused, replace_rejected
from lit_attr.records.schema import (
    FORMAT_VERSION,
    MANIFEST_FORMAT,
    SUMMARY_FORMAT,
    BatchRecord,
    ExactRecord,
)
from lit_attr.records.state import RunState, digest_example, remove_claims

RESUME_HINT = "all files in it are whole, and the same command continues once this is fixed"
LIBRARIES = ("lit-attr", "torch", "transformers", "bitsandbytes", "lightning", "tokenizers")


class RunFolder:
    """The folder that a run writes to, and in which a later run of the same settings continues.

    Args:
        path: The folder. Nothing is created before `lock` and `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.batches = self.path / "batches"
        self.exact = self.path / "exact"
        self.manifest = self.path / "manifest.json"
        self.rejected = self.path / "rejected.jsonl"
        self.summary = self.path / "summary.json"
        self.figures = self.path / "figures"
        self.shown = self.path / "shown.json"
        self._lock = RunLock(self.path)

    def lock(self) -> str:
        """Keeps other runs out until `unlock`, and returns the run's name for its other processes to `join`.

        Raises:
            ArgumentError: Another run is at work in the folder, or the folder cannot be made.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            run = self._lock.acquire()
            # Half-written files of a process that was killed. No other process writes now.
            for folder in (self.path, self.batches, self.exact):
                for left in folder.glob(".*.tmp"):
                    left.unlink()
            remove_claims(self.path)
        return run

    def join(self, run: str, rank: int) -> None:
        """Lets another process of a run write to the folder.

        Raises:
            UserError: The process that locked the folder is gone.
        """
        with self._writing():
            self._lock.join(run, rank)

    def expect(self, processes: int) -> None:
        """Sets how many processes, which have all locked or joined, are to be watched for their end."""
        self._lock.expect(processes)

    def finish(self) -> None:
        """Waits, without a time limit, until every process of the run has written its files.

        Raises:
            UserError: One of them ended before it was done.
        """
        with self._writing():
            self._lock.finish()

    def unlock(self) -> None:
        """Lets other runs in."""
        if self._lock.is_first:
            remove_claims(self.path)
        self._lock.release()

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares the settings of an earlier run in the folder with those of this run.

        Args:
            settings: Settings by group.

        Raises:
            UserError: They differ in something that changes a number, or the manifest is not readable.
        """
        with self._writing():
            written = read_json(self.manifest) if self.manifest.exists() else None
        if written is None:
            if any(self.batches.glob("*.json")):
                raise ArgumentError("output_dir", f"{self.path} has batches but no manifest; give another folder")
            return
        check_header(written, self.manifest, MANIFEST_FORMAT)
        if not all(isinstance(written.get(group), dict) for group in settings):
            raise UserError(f"{self.manifest}: it lacks {' or '.join(settings)}; give another folder")
        for group, values in settings.items():
            for name, value in values.items():
                before = written[group].get(name)
                # The same rows from another place are the same rows: `content` identifies them.
                if before != value and (group, name) != ("data", "source"):
                    raise ArgumentError(
                        "output_dir",
                        f"{self.path} was written with {group}.{name} {before!r}, this run has {value!r}; give "
                        "another folder, or set overwrite=True to start afresh",
                    )

    def open(self, settings: Mapping[str, Mapping[str, Any]], rejected: Iterable[Rejected]) -> None:
        """Writes the manifest, unless there is one, and the refused rows. Needs the lock.

        Args:
            settings: Settings by group.
            rejected: The rows that the data refuses. What earlier runs refused while the model ran stays.
        """
        with self._writing():
            for folder in (self.batches, self.exact):
                folder.mkdir(parents=True, exist_ok=True)
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
            replace_rejected(self.rejected, rejected)

    def move_aside(self) -> None:
        """Moves an earlier run's files into a folder of their own beside the new ones."""
        files = self.batches, self.exact, self.manifest, self.rejected, self.summary, self.figures, self.shown
        known = [path for path in files if path.exists()]
        if known:
            with self._writing():
                prefix = datetime.now().strftime("replaced-%Y%m%d-%H%M%S-")
                aside = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))
                for path in known:
                    path.rename(aside / path.name)

    def write_batch(self, record: BatchRecord) -> None:
        """Writes a batch file, named after its first contrast, whole or not at all.

        Raises:
            ArgumentError: It cannot be written, or has been written already.
            UserError: Another process of the run is gone.
        """
        first = record.examples[0]
        path = self.batches / _file_name(first.id, first.step)
        with self._writing():
            self._lock.check()
            if path.exists():
                raise ArgumentError(
                    "source",
                    f"id {first.id!r}, step {first.step}, came twice in one run; give every fact an id of its "
                    "own, and every process its own share",
                )
            write_json(path, record)

    def write_exact(self, record: ExactRecord) -> None:
        """Writes the exact effects of a contrast, whole or not at all.

        Raises:
            ArgumentError: They cannot be written.
            UserError: Another process of the run is gone.
        """
        with self._writing():
            self._lock.check()
            write_json(self.exact / _file_name(record.id, record.step), record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, whole or not at all."""
        with self._writing():
            write_json(self.summary, summary)

    def write_config(self, settings: str) -> None:
        """Writes the command line's settings, whole or not at all."""
        with self._writing():
            write_bytes(self.path / "config.yaml", settings.encode())

    def add_rejected(self, rejected: Iterable[Rejected]) -> None:
        """Appends refused rows, all or none; several processes may do so at once."""
        with self._writing():
            append_rejected(self.rejected, rejected)

    def read_state(self) -> RunState:
        """The contrasts that are done, refused, or have exact effects. Reads and checks every file.

        Raises:
            UserError: See `read_batches`.
        """
        digests = {
            (example.id, example.step): digest_example(example)
            for _, batch in self.read_batches()
            for example in batch.examples
        }
        return RunState(
            done=frozenset(digests),
            refused=frozenset((row.id, row.step) for row in read_refused(self.rejected) if row.step is not None),
            exact={(record.id, record.step): record.refused is None for _, record in self.read_exact()},
            digests=digests,
            folder=self.path,
        )

    def read_batches(self) -> Iterator[tuple[Path, BatchRecord]]:
        """The batch files and their records, in the order of the files' names.

        Raises:
            UserError: A file does not follow its format, see `read_batch`, or cannot be read.
        """
        for path in sorted(self.batches.glob("*.json")):
            with _reading(path):
                record = read_batch(path)
            yield path, record

    def read_exact(self) -> Iterator[tuple[Path, ExactRecord]]:
        """The files of exact effects and their records, in the order of the files' names.

        Raises:
            UserError: A file does not follow its format, see `read_batch`, or cannot be read.
        """
        for path in sorted(self.exact.glob("*.json")):
            with _reading(path):
                record = read_exact(path)
            yield path, record

    def read_manifest(self) -> dict[str, Any]:
        """The manifest: the settings that the records were written with.

        Raises:
            UserError: It is missing, damaged, or of another version.
        """
        if not self.manifest.is_file():
            raise UserError(f"{self.path}: there is no manifest.json in it; give the output folder of a run")
        manifest = read_json(self.manifest)
        check_header(manifest, self.manifest, MANIFEST_FORMAT)
        return manifest

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of an earlier run; None where it is missing, damaged, or of another version."""
        try:
            summary = read_json(self.summary)
            check_header(summary, self.summary, SUMMARY_FORMAT)
        except (OSError, UserError):
            # It can be computed from the records again.
            return None
        return summary

    def count_rejected(self) -> int:
        """The number of refused rows and contrasts."""
        return count_rejected(self.rejected)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArgumentError(
                "output_dir", f"{self.path} cannot be written to ({error.strerror or error}); {RESUME_HINT}"
            ) from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror or error})") from error


def _file_name(contrast_id: int | str, step: int) -> str:
    # Text from the data never becomes a path.
    if isinstance(contrast_id, int):
        return f"{contrast_id:08d}-{step}.json"
    return f"{hashlib.sha256(contrast_id.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}-{step}.json"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
