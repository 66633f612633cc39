"""Where things are, and a Trainer as other people have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_attr.callbacks.writer import AttributionWriter

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
COUNTERFACT = SHARED_DATA / "counterfact-tracing-10k.parquet"


def writing_trainer(folder: Path, *, logger: Any = False, **writer: Any) -> pl.Trainer:
    """A stranger's Trainer with the writer in it, and no bars."""
    return pl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[AttributionWriter(str(folder), **writer)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
