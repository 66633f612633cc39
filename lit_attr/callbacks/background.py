"""Work done beside the model's: in order, in one thread, with errors that come up in the thread that asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# Evens out a slow disk. What waits is in memory, and lost if the process is killed.
MOST_WAITING = 2


class Background:
    """A thread that does one thing after another."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        """Does something later; waits first where too much is waiting already.

        Raises:
            BaseException: What earlier work has raised. What still waits then is dropped.
        """
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= MOST_WAITING):
            self._take()
        # Made here: an object that has not begun can go to another process.
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="lit-attr")
        self._waiting.append(self._executor.submit(work))

    def finish(self) -> None:
        """Waits until all is done, and ends the thread.

        Raises:
            BaseException: What some of the work has raised. What still waits then is dropped.
        """
        while self._waiting:
            self._take()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _take(self) -> None:
        try:
            self._waiting.popleft().result()
        except BaseException:
            self._waiting.clear()
            if self._executor is not None:
                self._executor.shutdown(cancel_futures=True)
                self._executor = None
            raise
