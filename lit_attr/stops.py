"""Ending a prediction run between two batches, when a scheduler or the user says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Schedulers commonly kill ten seconds or more after they ask.
GRACE_SECONDS = 8.0


class Stopped(Exception):  # noqa: N818  # a stop is no error
    """A signal ended the run. What was written stays, and the same run goes on from there.

    Args:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; the same command goes on where this run stopped"
        )
        self.signum = signum

    @property
    def status(self) -> int:
        """The exit status: 128 and the signal, as shells and schedulers know it."""
        return 128 + self.signum


class StopOnSignal(pl.Callback):
    """Lets the batch in flight be finished and written after SIGTERM or SIGINT, then raises `Stopped`.

    Lightning's predict loop never asks whether a signal came. Where the batch takes longer than 8 seconds, the
    process exits without it; files are whole all the same. A second signal ends it at once.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        process = os.getpid()

        def stop(signum: int, _: FrameType | None) -> None:
            if os.getpid() != process:
                return  # a loader's worker, which its parent ends
            if self._signum is not None:
                os._exit(128 + signum)
            self._signum = signum
            timer = threading.Timer(GRACE_SECONDS, _give_up, (signum, trainer.is_global_zero))
            timer.daemon = True
            timer.start()
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signum)

        # Lightning's own handler, put in before, makes every process wait for all others in the handler.
        self._before = {signum: signal.signal(signum, stop) for signum in SIGNALS}

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
        """Gives the signals back."""
        self._give_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}


def _give_up(signum: int, is_global_zero: bool) -> None:
    if is_global_zero:
        print(f"lit-attr: {Stopped(signum)}, with the batch in flight", file=sys.stderr, flush=True)
    os._exit(128 + signum)
