"""The lock of a folder, between real processes."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_attr import runlock
from lit_attr.errors import UserError
from lit_attr.runlock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from lit_attr.runlock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""
GONE = "the run's first process is gone; the same command goes on where it stopped"


def test_one_run_a_folder(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(
            UserError, match=rf"process {holder.pid} on {platform.node()} is writing to {tmp_path}"
        ):
            RunLock(tmp_path).acquire()
        holder.send_signal(signal.SIGKILL)
    lock = RunLock(tmp_path)
    lock.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        RunLock(tmp_path).acquire()
    lock.release()
    lock.release()
    RunLock(tmp_path).acquire()


def test_another_process_notices_that_the_first_is_gone(tmp_path: Path):
    first, other = RunLock(tmp_path), RunLock(tmp_path)
    other.join(first.acquire())
    other.check()
    first.check()
    first.release()
    with pytest.raises(UserError, match=GONE):
        other.check()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_a_process_that_joins_late_does_not_join_the_next_run(tmp_path: Path):
    first, following = RunLock(tmp_path), RunLock(tmp_path)
    run = first.acquire()
    first.release()
    following.acquire()
    with pytest.raises(UserError, match=GONE):
        RunLock(tmp_path).join(run)


def test_no_run_begins_while_a_process_of_the_last_may_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runlock, "PATIENCE_SECONDS", 0.2)
    first, other, following = RunLock(tmp_path), RunLock(tmp_path), RunLock(tmp_path)
    other.join(first.acquire())
    first.release()
    with pytest.raises(UserError, match=f"process {os.getpid()} on {platform.node()} is writing"):
        following.acquire()
    other.release()
    following.acquire()


def test_what_killed_processes_left_is_cleared(tmp_path: Path):
    (tmp_path / ".process-7-elsewhere.example.lock").touch()
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
