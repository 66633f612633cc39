"""The lock that keeps a folder to one run, be it of one process or of many."""

from __future__ import annotations

import os
import platform
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_attr.errors import UserError
from lit_attr.records import read_json, write_json

# A killed process's data loader workers, which share its lock, look for their parent every five seconds.
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.05


class RunLock:
    """Held by a run's first process, and in parts of their own by its others; a dead process holds nothing.

    The others' parts outlive the first process: where it was killed alone, nobody starts anew while one of them
    may still be writing.

    Args:
        folder: What is locked. It has to exist once the lock is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holder = folder / ".running"
        self._first = FileLock(folder / ".lock", blocking=False)
        self._other: FileLock | None = None

    def acquire(self) -> str:
        """Makes this the first process of the only run, and returns the run's name for `join`.

        Raises:
            UserError: Another run is at work.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _try(self._first):
            holder = self._read_holder()
            if _is_alive(holder) or time.monotonic() > deadline:
                raise self._refusal(holder.get("pid"), holder.get("host"))
            time.sleep(POLL_SECONDS)
        run = uuid.uuid4().hex
        write_json(self._holder, {"pid": os.getpid(), "host": platform.node(), "run": run})
        for path in self._folder.glob(".process-*.lock"):
            other = FileLock(path, blocking=False)
            while not _try(other):
                if time.monotonic() > deadline:
                    self.release()
                    raise self._refusal(*path.stem.split("-", 2)[1:])
                time.sleep(POLL_SECONDS)
            path.unlink()
            other.release()
        return run

    def join(self, run: str) -> None:
        """Makes this one of the other processes of a run.

        Raises:
            UserError: The run's first process is gone.
        """
        self._other = FileLock(self._folder / f".process-{os.getpid()}-{platform.node()}.lock", blocking=False)
        self._other.acquire()
        # In this order: a new run either finds this process's lock, or has put its own name here before.
        if self._read_holder().get("run") != run:
            self.release()
            raise _gone()
        self.check()

    def check(self) -> None:
        """Makes sure that the first process lives, in one of the others.

        Raises:
            UserError: It is gone.
        """
        if self._other is not None and _try(self._first):
            self.release()
            raise _gone()

    def release(self) -> None:
        """Lets other runs in."""
        if self._other is not None:
            Path(self._other.lock_file).unlink(missing_ok=True)
            self._other.release()
            self._other = None
        if self._first.is_locked:
            self._holder.unlink(missing_ok=True)
            self._first.release()

    def _read_holder(self) -> dict[str, Any]:
        try:
            return read_json(self._holder)
        except FileNotFoundError:
            return {}

    def _refusal(self, pid: object, host: object) -> UserError:
        return UserError(
            f"writer.output_dir: process {pid} on {host} is writing to {self._folder}; wait for it, or give "
            "another folder"
        )


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    return True


def _is_alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if holder.get("host") != platform.node() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _gone() -> UserError:
    return UserError("the run's first process is gone; the same command goes on where it stopped")
