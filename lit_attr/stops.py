"""Ending a prediction run between two batches, when a scheduler or the user says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Schedulers commonly kill ten seconds or more after they ask.
GRACE_SECONDS = 8.0
# Ctrl-C comes from the terminal and from the process that started this one.
SAME_SIGNAL_SECONDS = 2.0


class Stopped(BaseException):
    """A signal ended the run. What was written stays, and the same run goes on from there.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; the same command goes on where this run stopped"
        )
        self.signum = signum


class StopOnSignal(pl.Callback):
    """Lets the batch in flight be finished and written after SIGTERM or SIGINT, then raises `Stopped`.

    Lightning's predict loop never asks whether a signal came. Where the batch takes longer than 8 seconds, the
    process exits without it; files are whole all the same. A second signal, two seconds later or more, ends it at
    once.
    """

    def __init__(self) -> None:
        self._signum: int | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over; the Trainer gives them back when it is done."""
        self._signum = None
        process = os.getpid()
        first = 0.0

        def stop(signum: int, _: FrameType | None) -> None:
            if os.getpid() != process:
                return  # a loader's worker, which its parent ends
            nonlocal first
            if self._signum is not None:
                if time.monotonic() - first > SAME_SIGNAL_SECONDS:
                    os._exit(exit_status(signum))
                return
            self._signum, first = signum, time.monotonic()
            timer = threading.Timer(GRACE_SECONDS, _give_up, (signum,))
            timer.daemon = True
            timer.start()
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signum)

        # Lightning's own handler, put in before, makes every process wait for all others in the handler.
        _handle(stop)

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Raises `Stopped` once a signal came."""
        if self._signum is not None:
            raise Stopped(self._signum)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Raises `Stopped` where another process has stopped while this one was waiting for it."""
        if self._signum is not None and not isinstance(exception, Stopped):
            raise Stopped(self._signum)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """SIGTERM and SIGINT raise `Stopped` wherever the process is: there is no batch to finish."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Stopped(signum)

    before = _handle(stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def exit_status(signum: int) -> int:
    """128 and the signal, as shells and schedulers know it; 0 in all processes but the first.

    Lightning kills the first one where another fails, and it may still have its batch to finish.
    """
    return 128 + signum if process_rank() == 0 else 0


def process_rank() -> int:
    """Which of a run's processes this is, before there is a Trainer to ask and after it."""
    return getattr(rank_zero_only, "rank", None) or 0


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Puts a handler in, where Python allows it; returns those that were there."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {signum: signal.signal(signum, handler) for signum in SIGNALS}


def _give_up(signum: int) -> None:
    if process_rank() == 0:
        print(f"lit-attr: {Stopped(signum)}; the batch in flight is lost", file=sys.stderr, flush=True)
    os._exit(exit_status(signum))
