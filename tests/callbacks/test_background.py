"""The thread beside the model's."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from lit_attr.callbacks.background import MOST_WAITING, Background


def test_does_all_in_order_in_one_other_thread():
    background = Background()
    done: list[int] = []
    threads = set()

    def work(number: int) -> None:
        threads.add(threading.current_thread())
        done.append(number)

    for number in range(50):
        background.do(lambda number=number: work(number))
    background.finish()
    assert done == list(range(50))
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    assert not threads.pop().is_alive()


def test_waits_where_too_much_is_waiting():
    background = Background()
    gate = threading.Event()
    for _ in range(MOST_WAITING):
        background.do(gate.wait)
    threading.Timer(0.2, gate.set).start()
    started = time.monotonic()
    background.do(lambda: None)
    assert time.monotonic() - started > 0.15
    background.finish()


def test_errors_come_up_where_work_is_given_and_the_rest_is_dropped():
    background = Background()
    done: list[str] = []
    gate = threading.Event()

    def fail() -> None:
        gate.wait()
        raise OSError("disk full")

    background.do(fail)
    background.do(lambda: done.append("after"))
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        background.do(lambda: done.append("last"))
    background.finish()
    assert "last" not in done
    background.do(lambda: done.append("again"))
    with pytest.raises(OSError, match="disk full"):
        background.do(fail) or background.finish()
    assert done[-1] == "again"


def test_can_go_to_another_process_before_it_has_begun():
    pickle.loads(pickle.dumps(Background())).finish()
