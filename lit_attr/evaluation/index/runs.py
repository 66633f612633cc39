"""The index of a run's records: a few numbers and texts of each contrast, from which lists are made.

Axes: L layers, R rows of means (in the order of `MEAN_ROLES`), N contrasts of the run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.evaluation.findings import key_order
from lit_attr.evaluation.index.parts import Fact, Part, read_part
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.records.files import check_name, check_of_run, read_batch, read_exact
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import BatchRecord, ExactRecord, Example

Stamp = tuple[int, int]


@dataclass
class Columns:
    """The contrasts of a run, ordered by id and step.

    Attributes:
        facts: The contrasts.
        files: The batch file of each.
        row_of: The row of each by its id and step.
        folded: Prompt, subject and answers of each without regard to case, to search in.
    """

    facts: list[Fact]
    files: list[str]
    row_of: dict[ContrastKey, int]
    folded: list[str]
    relations: list[str]
    logit_diff_N: NDArray[np.float64]
    prob_true_N: NDArray[np.float64]
    rank_true_N: NDArray[np.int64]
    largest: dict[str, NDArray[np.float64]]
    error: dict[str, NDArray[np.float64]]


class ExactNote(NamedTuple):
    """What is kept of a file of exact effects."""

    path: Path
    is_compared: bool


@dataclass
class _Files:
    """What was read of the files of a folder, by name."""

    stamps: dict[str, Stamp] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class RunIndex:
    """What is known of a run at one time; whoever answers from it reads one from start to end.

    Args:
        folder: The run's folder.
        manifest: Its manifest.
        parts: What is kept of each batch file, by name.
        exact: What is kept of each file of exact effects, by contrast.
        problems: A line for each file that was left out.
        newest: When the newest file of records was written, in nanoseconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        manifest: dict[str, Any],
        parts: dict[str, Part],
        exact: dict[ContrastKey, ExactNote],
        problems: list[str],
        newest: int,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.problems = problems
        self.newest = newest
        self._parts = dict(sorted(parts.items()))
        self._exact = exact

    @cached_property
    def columns(self) -> Columns:
        """The contrasts."""
        found = [(fact, name) for name, part in self._parts.items() for fact in part.facts]
        found.sort(key=lambda item: key_order(*item[0].key))
        facts = [fact for fact, _ in found]
        return Columns(
            facts,
            [name for _, name in found],
            {fact.key: row for row, fact in enumerate(facts)},
            [
                f"{fact.prompt}\n{fact.subject}\n{fact.target_true}\n{fact.target_false}".casefold()
                for fact in facts
            ],
            [fact.relation for fact in facts],
            np.array([fact.logit_diff for fact in facts], dtype=np.float64),
            np.array([fact.prob_true for fact in facts], dtype=np.float64),
            np.array([fact.rank_true for fact in facts], dtype=np.int64),
            {name: np.array([fact.largest[name].score for fact in facts]) for name in self.components},
            {name: np.array([fact.error[name] for fact in facts]) for name in self.components},
        )

    @property
    def layers(self) -> list[int]:
        """The layers of the scores: those of the batch files, or those of the settings."""
        first = next(iter(self._parts.values()), None)
        return [*first.layers] if first is not None else list(self.manifest["model"].get("layers", []))

    @property
    def components(self) -> list[str]:
        """The components that the batch files have scores of; none where there is no file."""
        first = next(iter(self._parts.values()), None)
        return [*first.means] if first is not None else []

    def is_checked(self, key: ContrastKey) -> bool:
        """Whether a contrast has exact effects."""
        note = self._exact.get(key)
        return note is not None and note.is_compared

    def cell_N(self, component: str, layer: int, role: int) -> NDArray[np.float32]:
        """The mean score of each contrast in one layer at one role, NaN where it has no such token."""
        place = self.layers.index(layer)
        by_file = {name: part.means[component][:, place, role] for name, part in self._parts.items()}
        places = zip(self.columns.files, self.columns.facts, strict=True)
        return np.array([by_file[file][fact.place] for file, fact in places], dtype=np.float32)

    def example(self, row: int) -> tuple[BatchRecord, Example]:
        """The whole record of a contrast, read from its file.

        Raises:
            UserError: The file is damaged, or was changed since the index was made.
        """
        path, fact = self.folder.batches / self.columns.files[row], self.columns.facts[row]
        batch = read_batch(path)
        if fact.place < len(batch.examples):
            example = batch.examples[fact.place]
            if (example.id, example.step) == fact.key:
                return batch, example
        raise UserError(f"{path}: it was changed meanwhile; refresh the page, or run again")

    def exact(self, key: ContrastKey) -> ExactRecord | None:
        """The exact effects of a contrast, read from their file; None where there are none.

        Raises:
            UserError: The file is damaged.
        """
        note = self._exact.get(key)
        return None if note is None else read_exact(note.path)

    def batch_names(self) -> list[str]:
        """The names of the batch files that could be read."""
        return list(self._parts)

    def exact_paths(self) -> list[Path]:
        """The files of exact effects that could be read."""
        return sorted(note.path for note in self._exact.values())


class IndexedRun:
    """A run and its index, which is made again where files were added or changed. Damaged files are left out.

    Args:
        path: The run's folder.
    """

    def __init__(self, path: Path) -> None:
        self._folder = RunFolder(path)
        self._lock = threading.Lock()
        self._batches, self._exact_files = _Files(), _Files()
        self._parts: dict[str, Part] = {}
        self._exact: dict[ContrastKey, ExactNote] = {}
        self._index: RunIndex | None = None

    def index(self) -> RunIndex:
        """The index as it was last made.

        Raises:
            UserError: See :func:`refresh`.
        """
        return self._index or self.refresh()

    def refresh(self) -> RunIndex:
        """The index with what was added to the run since; the same one where nothing was.

        Raises:
            UserError: The manifest is missing or damaged.
        """
        with self._lock:
            manifest = self._folder.read_manifest()
            if self._index is not None and manifest["run"] != self._index.manifest["run"]:
                # Another run has taken the folder.
                self._batches, self._exact_files = _Files(), _Files()
                self._parts, self._exact, self._index = {}, {}, None
            fresh, is_changed = self._read_exact(manifest)
            is_changed |= self._read_batches(manifest, fresh)
            if self._index is None or is_changed or manifest != self._index.manifest:
                stamps = [*self._batches.stamps.values(), *self._exact_files.stamps.values()]
                self._index = RunIndex(
                    self._folder,
                    manifest,
                    self._parts,
                    dict(self._exact),
                    [*self._batches.problems.values(), *self._exact_files.problems.values()],
                    max((time for time, _ in stamps), default=0),
                )
            return self._index

    def _read_exact(self, manifest: dict[str, Any]) -> tuple[dict[ContrastKey, ExactRecord], bool]:
        """The exact effects that were added, by contrast, and whether any file changed."""
        changed, gone = _changes(self._folder.exact, self._exact_files)
        if gone or changed:
            names = {*gone, *changed}
            self._exact = {key: note for key, note in self._exact.items() if note.path.name not in names}
        fresh = {}
        for name in changed:
            path = self._folder.exact / name
            try:
                record = read_exact(path)
                check_of_run(path, record, set(record.effects), manifest)
                check_name(path, record.id, record.step)
            except UserError as error:
                self._exact_files.problems[name] = str(error)
                continue
            fresh[record.id, record.step] = record
            self._exact[record.id, record.step] = ExactNote(path, record.refused is None)
        return fresh, bool(changed or gone)

    def _read_batches(self, manifest: dict[str, Any], fresh: dict[ContrastKey, ExactRecord]) -> bool:
        """Reads the batch files that were added or got exact effects; whether there were any."""
        changed, gone = _changes(self._folder.batches, self._batches)
        for name in (*gone, *changed):
            self._parts.pop(name, None)
        late = [name for name, part in self._parts.items() if any(fact.key in fresh for fact in part.facts)]

        def exact_of(key: ContrastKey) -> ExactRecord | None:
            note = self._exact.get(key)
            return fresh.get(key) or (None if note is None else read_exact(note.path))

        for name in sorted({*changed, *late}):
            path = self._folder.batches / name
            try:
                part = read_part(path, manifest, exact_of)
                self._check_like_others(path, part)
            except UserError as error:
                self._parts.pop(name, None)
                self._batches.problems[name] = str(error)
            else:
                self._parts[name] = part
        return bool(changed or gone or late)

    def _check_like_others(self, path: Path, part: Part) -> None:
        first = next(iter(self._parts.values()), part)
        if (part.layers, part.rule, set(part.means)) != (first.layers, first.rule, set(first.means)):
            raise UserError(
                f"{path}: it has other layers, components or another rule than the others; move it away"
            )


def _changes(folder: Path, files: _Files) -> tuple[list[str], list[str]]:
    """The files that are new or changed, and those that are gone. They count as read from then on."""
    now = dict(_stamps(folder))
    changed = sorted(name for name, stamp in now.items() if files.stamps.get(name) != stamp)
    gone = [name for name in files.stamps if name not in now]
    for name in (*changed, *gone):
        files.problems.pop(name, None)
    files.stamps = now
    return changed, gone


def _stamps(folder: Path) -> Iterator[tuple[str, Stamp]]:
    """The JSON files of a folder with their times and sizes. A link could lead out of the run."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield entry.name, (status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        return
