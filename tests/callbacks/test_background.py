"""The background thread: order, a bounded queue, and errors."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from lit_attr.callbacks.background import MAX_QUEUED, Background


def test_runs_tasks_in_order_in_one_other_thread():
    background = Background()
    done: list[int] = []
    threads = set()

    def work(number: int) -> None:
        threads.add(threading.current_thread())
        done.append(number)

    for number in range(50):
        background.submit(lambda number=number: work(number))
    background.finish()
    assert done == list(range(50))
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_submit_blocks_while_the_queue_is_full():
    background = Background()
    gate = threading.Event()
    for _ in range(MAX_QUEUED):
        background.submit(gate.wait)
    threading.Timer(0.2, gate.set).start()
    started = time.monotonic()
    background.submit(lambda: None)
    assert time.monotonic() - started > 0.15
    background.finish()


def test_an_error_is_raised_on_submit_and_the_queued_tasks_are_dropped():
    background = Background()
    done: list[str] = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise OSError("disk full")

    background.submit(fail)
    background.submit(lambda: done.append("after"))
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        background.submit(lambda: done.append("last"))
    background.finish()
    assert "last" not in done
    background.submit(lambda: done.append("again"))
    with pytest.raises(OSError, match="disk full"):
        background.submit(fail) or background.finish()
    assert done[-1] == "again"


def test_can_be_pickled_before_the_first_task():
    pickle.loads(pickle.dumps(Background())).finish()
