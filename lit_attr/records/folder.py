"""The folder that a run writes to: what is done in it, with which settings, and by which processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.rows import Rejected
from lit_attr.facts.table.keys import GrowingKeys, hash_keys
from lit_attr.records.files import (
    briefly,
    check_header,
    check_name,
    check_of_run,
    check_own,
    file_name,
    read_batch,
    read_exact,
    read_json,
    read_sealed,
    remove_temporary,
    write_bytes,
    write_json,
    write_sealed,
)
from lit_attr.records.kept import read_error_model
from lit_attr.records.lock import RunLock
from lit_attr.records.rejected import append_rejected, count_rejected, read_refused, replace_rejected
from lit_attr.records.schema import (
    MANIFEST_FORMAT,
    SUMMARY_FORMAT,
    BatchRecord,
    ExactRecord,
)
from lit_attr.records.scored import Entry, Scored
from lit_attr.records.state import (
    EXTENDED,
    RunState,
    digest_example,
    extended_settings,
    new_manifest,
    remove_claims,
)

RESUME_HINT = "all files in it are whole, and the same command continues once this is fixed"

BETWEEN_LOOKS = 0.1  # seconds


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
        self.error_model = self.path / "error_model.json"
        self.mean_writes = self.path / "mean_writes.safetensors"
        self.rejected = self.path / "rejected.jsonl"
        self.screened = self.path / "screened.jsonl"
        self.summary = self.path / "summary.json"
        self.figures = self.path / "figures"
        self.shown = self.path / "shown.json"
        self.config = self.path / "config.yaml"
        self._lock = RunLock(self.path)
        self._run: str | None = None

    def lock(self) -> str:
        """Keeps other runs out until `unlock`, and returns the run's name for its other processes to `join`.

        Raises:
            ArgumentError: Another run is at work in the folder, or the folder cannot be made.
        """
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_own()
            run = self._lock.acquire()
            for folder in (self.path, self.batches, self.exact):
                remove_temporary(folder)
            for inner, _, _ in os.walk(self.figures):
                remove_temporary(Path(inner))
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
            # The end of a run is no time for complaints.
            remove_claims(self.path, strict=False)
        self._lock.release()

    def check(
        self, settings: Mapping[str, Mapping[str, Any]], content_of: Callable[[int], str] | None = None
    ) -> None:
        """Compares the settings of an earlier run in the folder with those of this run.

        Args:
            settings: Settings by group.
            content_of: The hash of this run's first so many contrasts. With it, a run with a larger limit may
                extend an earlier one that had the same first rows.

        Raises:
            UserError: They differ in something that changes a number, or the manifest is not readable.
        """
        if not os.path.lexists(self.manifest):
            if any(self.batches.glob("*.json")):
                raise ArgumentError("output_dir", f"{self.path} has batches but no manifest; give another folder")
            return
        written = self.read_manifest()
        # The same rows from another place are the same rows: `content` identifies them.
        ignored = {("data", "source")}
        if content_of is not None:
            ignored |= {
                ("data", name) for name in extended_settings(written["data"], settings["data"], content_of)
            }
        for group, values in settings.items():
            for name, value in values.items():
                before = written[group].get(name)
                if before != value and (group, name) not in ignored:
                    raise ArgumentError(
                        "output_dir",
                        f"{self.path} was written with {group}.{name} {briefly(before)}, this run has "
                        f"{briefly(value)}; give another folder, or set overwrite to true to start afresh",
                    )

    def open(self, settings: Mapping[str, Mapping[str, Any]], rejected: Iterable[Rejected]) -> None:
        """Writes the manifest, or extends the one that is there, and the refused rows. Needs the lock and `check`.

        Args:
            settings: Settings by group.
            rejected: The rows that the data refuses. What earlier runs refused while the model ran stays.
        """
        with self._writing():
            for folder in (self.batches, self.exact):
                folder.mkdir(parents=True, exist_ok=True)
            if not self.manifest.exists():
                write_sealed(self.manifest, new_manifest(settings))
            else:
                written = self.read_manifest()
                if any(written["data"].get(name) != settings["data"].get(name) for name in EXTENDED):
                    # The run keeps its name: what it has written so far stays part of it.
                    write_sealed(self.manifest, {**written, "data": settings["data"]})
            self._run = None
            replace_rejected(self.rejected, rejected)

    def move_aside(self) -> None:
        """Moves an earlier run's files into a folder of their own beside the new ones."""
        records = self.batches, self.exact, self.manifest, self.error_model, self.mean_writes
        others = self.rejected, self.screened, self.summary, self.figures, self.shown
        known = [path for path in (*records, *others) if path.exists()]
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
        path = self.batches / file_name(first.id, first.step)
        with self.writing():
            if path.exists():
                raise ArgumentError(
                    "source",
                    f"id {briefly(first.id)}, step {first.step}, came twice in one run; give every fact an id of "
                    "its own, and every process its own share",
                )
            write_sealed(path, msgspec.structs.replace(record, run=self.run_name()))

    def write_exact(self, record: ExactRecord) -> None:
        """Writes the exact effects of a contrast, whole or not at all.

        Raises:
            ArgumentError: They cannot be written.
            UserError: Another process of the run is gone.
        """
        with self.writing():
            named = msgspec.structs.replace(record, run=self.run_name())
            write_sealed(self.exact / file_name(record.id, record.step), named)

    def wait_for_exact(self, keys: Sequence[ContrastKey]) -> list[ExactRecord]:
        """The exact effects of some contrasts, once the run's processes have written all of them.

        Raises:
            UserError: Another process of the run is gone, or a file is damaged or gone.
        """
        paths = [self.exact / file_name(*key) for key in keys]
        while missing := [path for path in paths if not path.exists()]:
            if self._lock.is_alone:
                raise UserError(f"{missing[0]}: this run has written it, and it is gone; run again")
            with self.writing():
                pass
            time.sleep(BETWEEN_LOOKS)
        return [read_exact(path) for path in paths]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, whole or not at all."""
        with self._writing():
            write_json(self.summary, summary)

    def write_shown(self, shown: Mapping[str, Any]) -> None:
        """Writes the list of what event files show, whole or not at all."""
        with self._writing():
            write_json(self.shown, shown)

    def write_config(self, settings: str) -> None:
        """Writes the command line's settings, whole or not at all."""
        with self._writing():
            write_bytes(self.config, settings.encode())

    def add_rejected(self, rejected: Iterable[Rejected]) -> None:
        """Appends refused rows, all or none; several processes may do so at once."""
        with self._writing():
            append_rejected(self.rejected, rejected)

    def read_state(self) -> RunState:
        """The contrasts that are done, refused, or have exact effects. Reads and checks every file.

        Raises:
            UserError: See `read_batches`.
        """
        done = Scored(
            Entry((example.id, example.step), digest_example(example), path.name)
            for path, batch in self.read_batches()
            for example in batch.examples
        )
        exact: dict[ContrastKey, bool] = {}
        pilots: set[ContrastKey] = set()
        for _, record in self.read_exact():
            exact[record.id, record.step] = record.refused is None
            if record.is_pilot:
                pilots.add((record.id, record.step))
        error_model = read_error_model(self)
        if error_model is not None:
            # Also where a damaged file of the pilot was moved away: it judges nothing.
            pilots |= {(identity, step) for identity, step in error_model["pilot"]}
        return RunState(
            done=done,
            refused=frozenset((row.id, row.step) for row in read_refused(self.rejected) if row.step is not None),
            exact=exact,
            pilots=frozenset(pilots),
            has_error_model=error_model is not None,
            folder=self.path,
        )

    def read_batches(self) -> Iterator[tuple[Path, BatchRecord]]:
        """The batch files and their records, in the order of the files' names.

        Raises:
            UserError: A file does not follow its format, see `read_batch`, cannot be read, is not of this run, or
                has a contrast that another one has as well.
        """
        paths = sorted(self.batches.glob("*.json"))
        # Without a batch there is nothing that a manifest could be missing for.
        manifest = self.read_manifest() if paths else {}
        found = GrowingKeys()
        for number, path in enumerate(paths):
            record = read_batch(path)
            components = {component for example in record.examples for component in example.scores}
            check_of_run(path, record, components, manifest)
            check_name(path, record.examples[0].id, record.examples[0].step)
            hashes = hash_keys((example.id, example.step) for example in record.examples)
            for example, first in zip(record.examples, found.add(hashes, number).tolist(), strict=True):
                if first >= 0:
                    raise UserError(
                        f"{path}: id: {briefly(example.id)}, step {example.step}, is in {paths[first].name} as "
                        "well; move one of the two away and run again"
                    )
            yield path, record

    def read_exact(self) -> Iterator[tuple[Path, ExactRecord]]:
        """The files of exact effects and their records, in the order of the files' names.

        Raises:
            UserError: A file does not follow its format, see `read_batch`, cannot be read, or is not of this run.
        """
        paths = sorted(self.exact.glob("*.json"))
        manifest = self.read_manifest() if paths else {}
        for path in paths:
            record = read_exact(path)
            check_of_run(path, record, set(record.effects), manifest)
            # With one contrast a file, no two files can have the same contrast.
            check_name(path, record.id, record.step)
            yield path, record

    def read_manifest(self) -> dict[str, Any]:
        """The manifest: the settings that the records were written with.

        Raises:
            UserError: It is missing, damaged, or of another version.
        """
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}; check the path")
        if not self.manifest.is_file():
            raise UserError(f"{self.path}: there is no manifest.json in it; give the output folder of a run")
        manifest = read_sealed(self.manifest, MANIFEST_FORMAT)
        for name, kind in (("model", dict), ("data", dict), ("run", str)):
            if not isinstance(manifest.get(name), kind):
                raise UserError(f"{self.manifest}: it lacks {name}; give another folder")
        return manifest

    def read_summary(self) -> dict[str, Any] | None:
        """The summary of an earlier run; None where it is missing, damaged, or of another version."""
        try:
            summary = read_json(self.summary)
            check_header(summary, self.summary, SUMMARY_FORMAT)
        except (OSError, UserError):
            # It can be computed from the records again, and is compared with them, so that it needs no seal.
            return None
        return summary if isinstance(summary.get("seconds", 0), (int, float)) else None

    def count_rejected(self) -> int:
        """The number of refused rows and contrasts."""
        return count_rejected(self.rejected)

    def run_name(self) -> str:
        """The name of the run that writes to the folder."""
        if self._run is None:
            self._run = str(read_json(self.manifest)["run"])
        return self._run

    def _check_own(self) -> None:
        """Checks that no link or folder is where this run is going to write files."""
        for path in (self.batches, self.exact, self.figures):
            check_own(path, is_folder=True)
        for path in (self.manifest, self.error_model, self.mean_writes, self.rejected, self.screened):
            check_own(path)
        for path in (self.summary, self.shown, self.config):
            check_own(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Re-raises what a full or read-only disk does as an error of `output_dir`.

        Raises:
            UserError: Another process of the run is gone.
        """
        with self._writing():
            self._lock.check()
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Only these are the fault of a single place in the folder.
            is_place = isinstance(error, (IsADirectoryError, FileExistsError))
            place = (error.filename2 or error.filename) if is_place else None
            reason = f"{place or self.path} cannot be written to ({error.strerror or error}); {RESUME_HINT}"
            raise ArgumentError("output_dir", reason) from error
