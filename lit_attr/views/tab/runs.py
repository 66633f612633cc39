"""The runs under TensorBoard's log folder."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
DEEPEST = 8  # folders below the log folder
MOST_FOLDERS = 20_000
ABOVE = 3  # a Trainer's event files are in OUT/lightning_logs/version_0
FRESH = 2.0  # seconds for which the folders are not looked through again


class LogFolder:
    """The log folder, and the runs in it by their names: paths relative to it.

    Args:
        path: The log folder; None where TensorBoard has none on this machine.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path).expanduser() if path and "://" not in path else None
        self._runs: dict[str, Path] = {}
        self._looked = -FRESH
        self._lock = threading.Lock()

    def runs(self) -> dict[str, Path]:
        """The folders of the runs by name, in the order of their names."""
        with self._lock:
            if self.path is not None and time.monotonic() - self._looked > FRESH:
                self._runs = {name_of(self.path, path): path for path in sorted(find_runs(self.path))}
                self._looked = time.monotonic()
            return self._runs

    def advice(self) -> str:
        """What to do where no run is found."""
        if self.path is None:
            return "The tab reads runs from a folder on this machine: tensorboard --logdir OUT"
        above = self._run_above()
        if above is not None:
            return (
                "Only the event files of a run are under the log folder; its records are above. "
                f"Start: tensorboard --logdir {shlex.quote(str(above))}"
            )
        return (
            f"No run is under {self.path.absolute()}. Give the output folder of lit-attr predict, or a folder "
            "above several: tensorboard --logdir OUT"
        )

    def has_records_above(self) -> bool:
        """Whether the log folder is inside a run's folder."""
        return self._run_above() is not None

    def _run_above(self) -> Path | None:
        parents = [] if self.path is None else [*self.path.absolute().parents]
        return next(filter(is_run, parents[:ABOVE]), None)


def find_runs(top: Path) -> Iterator[Path]:
    """The folders with a manifest, `top` among them. What is inside such a folder belongs to its run.

    Links to folders are followed, each folder once.
    """
    waiting, seen = [(top, 0)], set[str]()
    while waiting and len(seen) < MOST_FOLDERS:
        folder, depth = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        if is_run(folder):
            yield folder
        elif depth < DEEPEST:
            waiting += [(each, depth + 1) for each in _folders_in(folder)]


def is_run(folder: Path) -> bool:
    """Whether a folder has a manifest beside a folder of batches, as each run has from its start."""
    return (folder / MANIFEST).is_file() and (folder / "batches").is_dir()


def name_of(top: Path, path: Path) -> str:
    """The name of a run: its path below the log folder, or the log folder's own name."""
    return path.relative_to(top).as_posix() if path != top else top.absolute().name or "run"


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
