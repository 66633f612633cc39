"""Agreement reports made up by hand, in the form of a summary's `agreement`."""

from __future__ import annotations

from typing import Any


def part(
    pearson: float | None, low: float | None = None, high: float | None = None, **figures: float | None
) -> dict[str, Any]:
    """The agreement over some cells; the other figures have no interval."""
    interval = None if low is None or high is None else [low, high]
    return {
        "pearson": pearson,
        **figures,
        "intervals": {"pearson": interval, **dict.fromkeys(figures)},
    }


def report(pearson: float | None, by_layer: dict[str, dict[str, Any]], **figures: float | None) -> dict[str, Any]:
    """A report on 4 contrasts, with intervals of 0.1 to either side over all cells."""
    ends = (None, None) if pearson is None else (pearson - 0.1, pearson + 0.1)
    whole = part(pearson, *ends, **figures)
    return {
        "contrasts": 4,
        "ablation": "zero",
        **whole,
        "without_position_0": part(0.5, 0.375, 0.625),
        "by_layer": by_layer,
    }
