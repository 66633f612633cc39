"""Prediction runs whose records other scripts compare, over rows drawn at random."""

from __future__ import annotations

import logging
import random
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import Row, open_rows
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.records.folder import RunFolder


class Drawn(NamedTuple):
    """Rows of a source.

    Attributes:
        rows: Those that were drawn.
        others: The others, which may be donors.
    """

    rows: list[Row]
    others: list[Row]

    def first(self, count: int) -> Drawn:
        """The first of the drawn rows."""
        return Drawn(self.rows[:count], self.rows[count:] + self.others)

    def data(self) -> CounterfactDataModule:
        """The drawn rows as data of a run."""
        return CounterfactDataModule([*self.rows, *self.others], limit=len(self.rows))


def draw_rows(source: str, count: int, seed: int) -> Drawn:
    """Draws rows that are facts, without replacement; all of them, shuffled, where there are no more.

    Args:
        source: The facts, as in `lit-attr predict --data.source`.
        count: The number of rows.
        seed: Seed of the draw.
    """
    rows = list(open_rows(source))
    valid = [fact.row for fact in read_facts(rows).facts]
    chosen = random.Random(seed).sample(valid, min(count, len(valid)))
    drawn = {*chosen}
    return Drawn([rows[row] for row in chosen], [row for place, row in enumerate(rows) if place not in drawn])


def predict(folder: Path, drawn: Drawn, *, verify: int = 0, **settings: Any) -> RunFolder:
    """Runs a prediction over drawn rows on the CPU, without pictures.

    Args:
        folder: The output folder.
        drawn: The rows.
        verify: Of how many contrasts exact effects are computed beside the scores.
        settings: Settings of `AttributionModule`.
    """
    with _quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[AttributionWriter(str(folder), max_heatmaps=0)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = AttributionModule(verify=verify, **settings)
        trainer.predict(module, datamodule=drawn.data(), return_predictions=False)
    return RunFolder(folder)


@contextmanager
def folder_of_runs(output_dir: str | None, model: str) -> Iterator[Path]:
    """The folder for a model's runs: in `output_dir`, where a later call continues them, or a temporary one."""
    if output_dir is not None:
        yield Path(output_dir) / short_name(model)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def short_name(model: str) -> str:
    """The name of a model in a table: of a file or folder the last part of its path."""
    return Path(model).name if Path(model).exists() else model


def print_command(script: str, model: str, source: str, rows: int, seed: int, ablation: str = "zero") -> None:
    """Prints the command that makes a table, with the names of files alone."""
    replaced = [] if ablation == "zero" else ["--ablation", ablation]
    options = [] if model == DEMO_MODEL else ["--models", f"[{short_name(model)}]", "--source", short_name(source)]
    words = ["python", f"scripts/{script}", *options, "--rows", str(rows), "--seed", str(seed), *replaced]
    print(f"`{' '.join(words)}`\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what libraries say about each run out of the output."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lit_attr")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    print("\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)), end="\n\n")


def file_name(label: str) -> str:
    """The name of the folder of a run."""
    return re.sub(r"\W+", "-", label).strip("-")
