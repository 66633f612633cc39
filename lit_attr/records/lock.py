"""The lock that keeps a folder to one run, of one process or of several."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from lit_attr.errors import ArgumentError, ReportedError, UserError
from lit_attr.records.files import check_own, own_files, read_json, write_json

# The data loader workers of a killed process share its lock, and check for their parent every five seconds.
PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.05
# How long the end of another process may go unnoticed by the first.
CHECK_SECONDS = 1.0
_PART, _FINISHED = re.compile(r"\.process-\d+\.lock"), re.compile(r"\.finished-\d+")


class RunLock:
    """Held by the first process of a run, with a part for each of the others; a dead process holds nothing.

    The parts outlive the first process: where it was killed alone, no new run starts while another process may
    still be writing. By the same locks the processes of a run notice each other's end.

    Args:
        folder: The folder to lock. It must exist when the lock is acquired.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holder = folder / ".running"
        # Made on acquisition: a lock cannot be passed to another process.
        self._first: FileLock | None = None
        self._own: FileLock | None = None
        self._rank, self._processes = 0, 1
        self._checked = 0.0
        self._is_finished = False

    @property
    def is_first(self) -> bool:
        """Whether this is the first process of a run, which holds the lock itself."""
        return self._own is None and self._first is not None and self._first.is_locked

    @property
    def is_alone(self) -> bool:
        """Whether the run has no other process."""
        return self._processes == 1

    def acquire(self) -> str:
        """Makes this the first process of the only run, and returns the run's name for `join`.

        Raises:
            ArgumentError: Another run is at work in the folder, as a fault of `output_dir`.
        """
        self._rank, self._processes = 0, 1
        # A lock empties its file, and would do so through a link.
        for path in (self._folder / ".lock", self._holder):
            check_own(path)
        self._first = _lock(self._folder / ".lock")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _try(self._first):
            holder = self._read_holder()
            if _is_alive(holder) or time.monotonic() > deadline:
                raise self._refusal(holder)
            time.sleep(POLL_SECONDS)
        run = uuid.uuid4().hex
        write_json(self._holder, {"pid": os.getpid(), "host": platform.node(), "run": run})
        for path in own_files(self._folder, _PART):
            other = _lock(path)
            while not _try(other):
                if time.monotonic() > deadline:
                    self.release()
                    raise self._refusal(orjson.loads(path.read_bytes() or b"{}"))
                time.sleep(POLL_SECONDS)
            path.unlink()
            other.release()
        for path in own_files(self._folder, _FINISHED):
            path.unlink()
        return run

    def join(self, run: str, rank: int) -> None:
        """Makes this one of the other processes of a run.

        Raises:
            UserError: The run's first process is gone.
        """
        self._rank, self._first, self._own = rank, _lock(self._folder / ".lock"), _lock(self._part(rank))
        self._own.acquire()
        self._part(rank).write_bytes(orjson.dumps({"pid": os.getpid(), "host": platform.node()}))
        # In this order: a new run either finds this process's lock, or has put its own name here before.
        if self._read_holder().get("run") != run:
            self.release()
            raise UserError(_gone(0))

    def expect(self, processes: int) -> None:
        """Sets how many processes the run has, this one included. All of them have joined by now."""
        self._processes = processes
        self._is_finished = False

    def check(self) -> None:
        """Checks that the others are alive. The first process checks all, once a second; they check the first.

        Raises:
            UserError: One of them ended before it was done.
        """
        if self._own is not None:
            assert self._first is not None
            if _try(self._first):
                # A process that was not killed has reported why it ended, and has removed its name.
                is_reported = not self._holder.exists()
                self.release()
                raise (ReportedError if is_reported else UserError)(_gone(0))
            return
        if self._processes == 1 or time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        for rank in range(1, self._processes):
            if not self._finished(rank).exists() and _try(part := _lock(self._part(rank))):
                self._part(rank).unlink()
                part.release()
                raise UserError(_gone(rank))

    def finish(self) -> None:
        """Waits, without a time limit, until every process of the run calls this.

        Raises:
            UserError: One of them ended before it was done.
        """
        if self._processes == 1:
            return
        self._finished(self._rank).touch()
        while not all(self._finished(rank).exists() for rank in range(self._processes)):
            self.check()
            time.sleep(POLL_SECONDS)
        self._is_finished = True

    def release(self) -> None:
        """Releases the lock. Another run can start."""
        if self._own is None and self._is_finished:
            # The others may still be looking for this process's mark, which is removed below.
            deadline = time.monotonic() + PATIENCE_SECONDS
            parts = [self._part(rank) for rank in range(1, self._processes)]
            while any(part.exists() for part in parts) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        if self._own is not None:
            self._part(self._rank).unlink(missing_ok=True)
            self._own.release()
            self._own = None
        if self._first is not None and self._first.is_locked:
            for path in (self._holder, *own_files(self._folder, _FINISHED, strict=False)):
                path.unlink(missing_ok=True)
            self._first.release()

    def _part(self, rank: int) -> Path:
        return self._folder / f".process-{rank}.lock"

    def _finished(self, rank: int) -> Path:
        return self._folder / f".finished-{rank}"

    def _read_holder(self) -> dict[str, Any]:
        try:
            return read_json(self._holder)
        except FileNotFoundError:
            return {}

    def _refusal(self, holder: dict[str, Any]) -> UserError:
        who = f"process {holder.get('pid')} on {holder.get('host')}"
        return ArgumentError(
            "output_dir", f"{who} is writing to {self._folder}; wait for it, or give another folder"
        )


def _lock(path: Path) -> FileLock:
    # One lock for all threads: records are written in a thread of their own.
    return FileLock(path, blocking=False, thread_local=False)


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


def _gone(rank: int) -> str:
    return f"process {rank} of the run has ended before all was done; the same command continues where it stopped"
