"""Prediction runs whose records `compare_rules.py` and `compare_formats.py` compare, over rows drawn at random."""

from __future__ import annotations

import logging
import random
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_attr import AttributionModule, AttributionWriter, CounterfactDataModule
from lit_attr.facts.rows import read_facts
from lit_attr.facts.sources import Row, open_rows
from lit_attr.models.loading import DEMO_MODEL
from lit_attr.records.folder import RunFolder


def draw_rows(source: str, count: int, seed: int) -> list[Row]:
    """Draws rows that are facts, without replacement; all of them, shuffled, where there are no more.

    Args:
        source: The facts, as in `lit-attr predict --data.source`.
        count: The number of rows.
        seed: Seed of the draw.
    """
    rows = list(open_rows(source))
    valid = [fact.row for fact in read_facts(rows).facts]
    return [rows[row] for row in random.Random(seed).sample(valid, min(count, len(valid)))]


def predict(folder: Path, rows: Sequence[Row], *, verify: int = 0, **settings: Any) -> RunFolder:
    """Runs a prediction over rows on the CPU, without pictures.

    Args:
        folder: The output folder.
        rows: The rows.
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
        trainer.predict(module, datamodule=CounterfactDataModule(rows), return_predictions=False)
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


def print_command(script: str, model: str, source: str, rows: int, seed: int) -> None:
    """Prints the command that makes a table, with the names of files alone."""
    options = [] if model == DEMO_MODEL else ["--models", f"[{short_name(model)}]", "--source", short_name(source)]
    print(f"`{' '.join(['python', f'scripts/{script}', *options, '--rows', str(rows), '--seed', str(seed)])}`\n")


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
