"""A thread for work beside the model's: in order, with errors raised in the thread that asked for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

# Evens out a slow disk, and bounds how many batches the host may be ahead of a GPU. What is queued is in memory,
# and lost if the process is killed.
MAX_QUEUED = 2


class Background:
    """A thread that runs one task after another."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._queued: deque[Future[None]] = deque()

    def submit(self, task: Callable[[], None]) -> None:
        """Queues a task; blocks first while too many are queued.

        Raises:
            BaseException: The error of an earlier task. What is still queued then is dropped.
        """
        while self._queued and (self._queued[0].done() or len(self._queued) >= MAX_QUEUED):
            self._take()
        # Created here: an object without a thread can be sent to another process.
        self._executor = self._executor or ThreadPoolExecutor(1, thread_name_prefix="lit-attr")
        self._queued.append(self._executor.submit(task))

    def finish(self) -> None:
        """Waits for all tasks, and ends the thread.

        Raises:
            BaseException: The error of a task. What is still queued then is dropped.
        """
        while self._queued:
            self._take()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _take(self) -> None:
        try:
            self._queued.popleft().result()
        except BaseException:
            self._queued.clear()
            if self._executor is not None:
                self._executor.shutdown(cancel_futures=True)
                self._executor = None
            raise
