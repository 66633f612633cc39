"""Paths of the repository, and a Trainer that writes records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
COUNTERFACT = SHARED_DATA / "counterfact-tracing-10k.parquet"


def writing_trainer(folder: Path, *, logger: Any = False, **writer: Any) -> pl.Trainer:
    """A plain Trainer with the writer among its callbacks and no progress bar."""
    # Imported here: many tests need the paths alone.
    import lightning.pytorch as pl

    from lit_attr.callbacks.writer import AttributionWriter

    return pl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[AttributionWriter(str(folder), **writer)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
