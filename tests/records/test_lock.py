"""The lock of a run folder, between real processes."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lit_attr.errors import ReportedError, UserError
from lit_attr.records import lock as lock_module
from lit_attr.records.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from lit_attr.records.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
time.sleep(60)
"""
GONE = "process {} of the run has ended before all was done; the same command continues where it stopped"


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


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "CHECK_SECONDS", 0.0)


def make_run(folder: Path, processes: int = 2) -> list[RunLock]:
    locks = [RunLock(folder) for _ in range(processes)]
    run = locks[0].acquire()
    for rank, lock in enumerate(locks):
        if rank:
            lock.join(run, rank)
        lock.expect(processes)
    return locks


@pytest.mark.usefixtures("at_once")
def test_processes_notice_each_others_end(tmp_path: Path):
    first, other, third = make_run(tmp_path, 3)
    for lock in (first, other, third):
        lock.check()
    third.release()
    other.check()
    with pytest.raises(UserError, match=GONE.format(2)):
        first.check()
    first.release()
    with pytest.raises(ReportedError, match=GONE.format(0)):
        other.check()
    other.release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_another_process_reports_that_the_first_was_killed(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        run = json.loads((tmp_path / ".running").read_text())["run"]
        other = RunLock(tmp_path)
        other.join(run, 1)
        other.check()
        holder.kill()
    with pytest.raises(UserError, match=GONE.format(0)) as reported:
        other.check()
    assert not isinstance(reported.value, ReportedError)


@pytest.mark.usefixtures("at_once")
def test_processes_wait_for_each_other_in_the_end(tmp_path: Path):
    first, other = make_run(tmp_path)
    waiting = threading.Thread(target=first.finish)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    other.finish()
    waiting.join(5)
    assert not waiting.is_alive()
    other.release()
    first.check()
    first.release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.usefixtures("at_once")
def test_processes_do_not_wait_for_one_that_is_gone(tmp_path: Path):
    first, other = make_run(tmp_path)
    other.release()
    with pytest.raises(UserError, match=GONE.format(1)):
        first.finish()


def test_a_process_that_joins_late_does_not_join_the_next_run(tmp_path: Path):
    first, following = RunLock(tmp_path), RunLock(tmp_path)
    run = first.acquire()
    first.release()
    following.acquire()
    with pytest.raises(UserError, match=GONE.format(0)):
        RunLock(tmp_path).join(run, 1)


def test_no_run_starts_while_a_process_of_the_last_may_still_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock_module, "PATIENCE_SECONDS", 0.2)
    first, other, following = RunLock(tmp_path), RunLock(tmp_path), RunLock(tmp_path)
    other.join(first.acquire(), 1)
    first.release()
    with pytest.raises(UserError, match=f"process {os.getpid()} on {platform.node()} is writing"):
        following.acquire()
    other.release()
    following.acquire()


def test_files_of_killed_processes_are_removed(tmp_path: Path):
    for name in (".process-1.lock", ".process-2.lock", ".finished-1"):
        (tmp_path / name).touch()
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
