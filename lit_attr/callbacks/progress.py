"""What the progress bar says while a run compares scores with exact effects."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar


def describe_comparison(trainer: pl.Trainer, comparison: tuple[int, int], *, is_pilot: bool = False) -> None:
    """Names the comparison that is being computed in the description of Lightning's progress bars.

    Args:
        trainer: The Trainer with the bar.
        comparison: Which comparison of this process it is, from 1, and of how many.
        is_pilot: Whether the contrast is of the pilot of an adaptive run.
    """
    bar = trainer.progress_bar_callback
    task = "Computing the pilot's exact effects" if is_pilot else "Comparing with exact effects"
    words = f"{task} {comparison[0]}/{comparison[1]}"
    if isinstance(bar, TQDMProgressBar):
        bar.predict_progress_bar.set_description(words)
    elif isinstance(bar, RichProgressBar) and bar.progress is not None and bar.predict_progress_bar_id is not None:
        bar.progress.update(bar.predict_progress_bar_id, description=words)
