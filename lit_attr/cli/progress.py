"""What a run of the command line shows while it runs: what is left to do, and a progress bar with its phase."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import ProgressBar
from torch.utils.data import DataLoader

from lit_attr.callbacks.bars import Bar, Lines
from lit_attr.cli.opening import count_facts
from lit_attr.cli.quiet import quieten_further_process
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.buckets import RankSampler
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.table.contrast_table import Rows
from lit_attr.records.state import RunState
from lit_attr.sampling.work import Work
from lit_attr.text import counted, print_text
from lit_attr.trainers import datamodule_of, run_state

PILOT, SCORES, EFFECTS = "pilot", "scores", "exact effects"
WRITING = "writing the summary and the pictures"


class RunProgress(pl.Callback):
    """Prints what is left to do, and shows how far a run is, in its first process.

    With several processes the progress is that of the first one, which has the same share as each of the others.

    Args:
        shows_bar: Whether to show the progress; what is left to do is printed in any case.
    """

    def __init__(self, *, shows_bar: bool) -> None:
        self.shows_bar = shows_bar
        self._display: Bar | Lines | None = None
        self._phase: str | None = None
        self._totals: Mapping[str, int] = {}
        # Its contrasts have scores of their own, but stay in their batches.
        self._pilot: Collection[ContrastKey] = ()
        self._has_started = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the warnings to the first process; a spawned one learns only here which it is."""
        if not trainer.is_global_zero:
            quieten_further_process()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints what is left to do."""
        self._has_started = True
        if not trainer.is_global_zero:
            return
        loader = trainer.predict_dataloaders
        if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RankSampler):
            return
        # The sampler is that of our data module, whose data set is a list.
        work = cast(Sequence[Work], loader.dataset)
        data = cast(CounterfactDataModule, datamodule_of(trainer))
        state = run_state(trainer) or RunState()
        self._pilot = {contrast.key for contrast in state.pilot}
        pilot = data.table.find(self._pilot)
        # With `step: all` a fact may have several contrasts.
        noun = "fact" if count_facts(data) == len(data.table) else "contrast"
        print_text(left_line(counts_by_phase(work, pilot), len(state.done), noun))
        # A limit on batches bounds the share of a process.
        batches = int(min(len(loader.sampler.share), sum(trainer.num_predict_batches)))
        self._totals = counts_by_phase((work[place] for place in loader.sampler.share[:batches]), pilot)
        if self.shows_bar:
            self._display = Bar(noun) if sys.stderr.isatty() else Lines(noun)

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Names the phase that the batch belongs to."""
        if self._display is None or not isinstance(batch, ContrastBatch):
            return
        phase = phase_of(batch.comparison is not None, is_pilot=batch.is_pilot)
        if phase != self._phase:
            self._phase = phase
            of = f" (process 1 of {trainer.world_size})" if trainer.world_size > 1 else ""
            self._display.start(f"{phase}{of}", self._totals.get(phase))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the contrasts of the batch."""
        if self._display is not None and isinstance(batch, ContrastBatch):
            is_comparison = batch.comparison is not None
            # Among scores those of the pilot do not count.
            self._display.advance(sum(is_comparison or each.key not in self._pilot for each in batch.contrasts))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says that the writer has its last work to do."""
        if self._display is not None:
            self._display.start(WRITING, None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the bar away, so that the error has a line of its own."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Takes the bar away, after the writer's last work."""
        self._close()
        if trainer.is_global_zero and not self._has_started:
            # With an empty loader the other hooks are skipped.
            state = run_state(trainer) or RunState()
            print_text(left_line({}, len(state.done)))

    def _close(self) -> None:
        if self._display is not None:
            self._display.close()
        self._display = None


def has_default_bar(trainer: Any) -> bool:
    """Whether settings of a Trainer ask for a progress bar without naming one.

    Args:
        trainer: The settings, with their objects made.
    """
    given = trainer.callbacks or []
    callbacks = given if isinstance(given, list) else [given]
    is_wanted = trainer.enable_progress_bar is not False and not trainer.barebones
    return is_wanted and not any(isinstance(each, ProgressBar) for each in callbacks)


def phase_of(is_comparison: bool, *, is_pilot: bool) -> str:
    """The phase that a batch belongs to."""
    return PILOT if is_pilot else EFFECTS if is_comparison else SCORES


def counts_by_phase(work: Iterable[Work], pilot: Rows) -> dict[str, int]:
    """How many contrasts each phase has, in the order of the phases; among scores those of the pilot do not count.

    Args:
        work: The batches.
        pilot: The rows of the contrasts of the pilot.
    """
    found: dict[str, int] = {}
    for each in work:
        is_comparison = each.comparison is not None
        phase = phase_of(is_comparison, is_pilot=each.is_pilot)
        count = len(each.rows) if is_comparison else int((~np.isin(each.rows, pilot)).sum())
        found[phase] = found.get(phase, 0) + count
    return found


def left_line(by_phase: Mapping[str, int], done: int, noun: str = "contrast") -> str:
    """What a run has left to do.

    Args:
        by_phase: How many contrasts each phase has.
        done: How many contrasts earlier runs have scored.
        noun: What a contrast is called: a fact, where each has one.
    """
    parts = [f"{phase} of {counted(count, noun)}" for phase, count in by_phase.items()]
    earlier = f"; scored by an earlier run: {done}" if done else ""
    return f"left to do: {', '.join(parts) or 'nothing'}{earlier}"
