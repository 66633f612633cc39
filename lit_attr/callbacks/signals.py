"""Stopping a prediction run between two batches after SIGTERM or SIGINT."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Schedulers commonly kill a job ten seconds or more after they ask it to stop.
GRACE_SECONDS = 8.0
START_GRACE_SECONDS = 1.0
# One Ctrl-C reaches a process from the terminal and from the process that started it.
SAME_SIGNAL_SECONDS = 2.0


class Stopped(BaseException):
    """A signal ended the run. What is written stays, and the same command resumes from there.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; the same command resumes where this run stopped"
        )
        self.signum = signum


class SignalListener:
    """Handles SIGTERM and SIGINT of this process from `start` to `stop`: raises `Stopped` in the main thread.

    While a batch is computed, the signal waits for its end. A thread of its own notices signals also while the
    main thread is inside a library's code: it passes them on to the processes that this one has started, and ends
    this process after 8 seconds (before there is a run, after one), or at a second signal two or more seconds
    later. Files are whole even then.

    Attributes:
        signum: The signal that was received.
        in_batch: Whether a batch is being computed.
        in_run: Whether all processes of the run listen by now.
        trainer: The Trainer whose processes these are.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.in_batch = False
        self.in_run = False
        self.trainer: pl.Trainer | None = None
        self._process = 0
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_listening(self) -> bool:
        """Whether it is started and not stopped."""
        return self._ends is not None

    def start(self) -> None:
        """Installs the handlers, where Python allows it: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.signum, self.in_batch, self.in_run, self.trainer = None, False, False, None
        self._process = os.getpid()
        self._ends = socket.socketpair()
        for end in self._ends:
            end.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._ends[1].fileno(), warn_on_full_buffer=False)
        # A signal to a loader's worker must not wake its parent's listener.
        os.register_at_fork(after_in_child=self._forget_in_child)
        self._before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        self._thread = threading.Thread(target=self._watch, args=(self._ends[0],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Restores the earlier handlers."""
        if self._ends is None or self._thread is None:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._ends[1].send(b"\0")
        self._thread.join()
        for end in self._ends:
            end.close()
        self._ends = None

    def end_children(self) -> None:
        """Kills the processes that this one has started, as long as they may not be listening yet."""
        if not self.in_run:
            self._signal_children(signal.SIGKILL)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if os.getpid() != self._process or self.signum is not None:
            return
        self.signum = signum
        if not self.in_batch:
            raise Stopped(signum)

    def _watch(self, end: socket.socket) -> None:
        first: tuple[float, int] | None = None
        while True:
            grace = GRACE_SECONDS if self.in_run else START_GRACE_SECONDS
            patience = None if first is None else max(0.0, first[0] + grace - time.monotonic())
            if not select.select([end], [], [], patience)[0] and first is not None:
                self._give_up(first[1])
            for signum in end.recv(64):
                if signum == 0:
                    return
                if signum not in SIGNALS:
                    continue
                if first is None:
                    first = time.monotonic(), signum
                    if self.in_run:
                        self._signal_children(signum)
                elif time.monotonic() - first[0] > SAME_SIGNAL_SECONDS:
                    os._exit(exit_status(128 + signum))

    def _give_up(self, signum: int) -> None:
        self.end_children()
        if process_rank() == 0:
            lost = "; the batch in flight is lost" if self.in_batch else ""
            print(f"lit-attr: {Stopped(signum)}{lost}", file=sys.stderr, flush=True)
        os._exit(exit_status(128 + signum))

    def _signal_children(self, signum: int) -> None:
        launcher = self.trainer.strategy.launcher if self.trainer is not None else None
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.Signals(signum))

    def _forget_in_child(self) -> None:
        if self._ends is not None:
            signal.set_wakeup_fd(-1)


# Signals belong to a process, and so does their listener.
listener = SignalListener()


class StopOnSignal(pl.Callback):
    """Lets the batch in flight finish after SIGTERM or SIGINT, then raises `Stopped`. Last of the callbacks.

    Lightning's predict loop never checks for signals, and its own handlers do not fit: the one for SIGTERM makes
    every process wait for all others, and under SLURM the one for requeueing saves the model as a checkpoint that
    later runs would load. This callback takes their place. A run resumes from its records alone.
    """

    def __init__(self) -> None:
        self._listener = SignalListener()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Installs the handlers, unless the command line has done so."""
        connector = trainer._signal_connector
        connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if listener.is_listening:
            self._listener = listener
        else:
            self._listener = SignalListener()
            self._listener.start()
        self._listener.trainer, self._listener.in_run = trainer, True

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Makes signals wait for the end of the batch."""
        self._listener.in_batch = True

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Raises `Stopped` if a signal was received meanwhile."""
        self._listener.in_batch = False
        if self._listener.signum is not None:
            raise Stopped(self._listener.signum)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Raises `Stopped` where an error follows from another process being stopped as well."""
        self._listener.in_batch = False
        signum = self._listener.signum
        self._restore()
        if signum is not None and not isinstance(exception, Stopped):
            raise Stopped(signum)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the earlier handlers."""
        self._restore()

    def _restore(self) -> None:
        if self._listener is not listener:
            self._listener.stop()


def exit_status(status: int) -> int:
    """The exit status; 0 in the processes that Lightning has started.

    Lightning kills the first process where another exits with a status that is not 0, though the first may still
    have a batch to finish. The first process notices by itself that another is gone.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return 0 if process_rank() and "LOCAL_RANK" in os.environ and not by_torchrun else status


def process_rank() -> int:
    """The rank of this process in its run; known before there is a Trainer, and after its end."""
    # Lightning sets the attribute on the function.
    return getattr(rank_zero_only, "rank", None) or 0
