"""How far a run is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time

from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_attr.text import print_text

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left"
# Without a terminal a line says as often how far the run is.
SECONDS_BETWEEN_LINES = 60.0


class Bar:
    """A progress bar on a terminal, one line for all phases, which is gone at the end.

    Args:
        noun: What is counted.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._bar: Tqdm | None = None

    def start(self, phase: str, total: int | None) -> None:
        """Begins a phase with so much to count; None for one that cannot be counted."""
        self.close()
        self._bar = Tqdm(
            desc=phase,
            total=total,
            unit=f" {self._noun}s",
            bar_format="{desc} ..." if total is None else BAR_FORMAT,
            dynamic_ncols=True,
            leave=False,
            # The variable that hides the bars of libraries is not meant for this one.
            disable=False,
        )

    def advance(self, count: int) -> None:
        """Counts on."""
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class Lines:
    """Progress in a file or a pipe: a line a minute.

    Args:
        noun: What is counted.
    """

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._phase, self._total, self._count = "", 0, 0
        self._started = self._printed = time.monotonic()

    def start(self, phase: str, total: int | None) -> None:
        """Begins a phase with so much to count; None for one that cannot be counted."""
        self._phase, self._total, self._count = phase, total or 0, 0
        self._started = time.monotonic()

    def advance(self, count: int) -> None:
        """Counts on, and prints a line where the last one is a minute old."""
        self._count += count
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            rate = self._count / (now - self._started)
            noun = f"{self._noun}s"
            print_text(f"{self._phase}: {self._count}/{self._total} {noun}, {rate:.2f} {noun}/s", sys.stderr)

    def close(self) -> None:
        """Nothing is left to take away."""
