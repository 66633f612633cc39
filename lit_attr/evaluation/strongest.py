"""Reading a profile: whether it has mean exact effects, and where its means are largest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_attr.evaluation.profile import KINDS
from lit_attr.facts.roles import POSITION_0


def has_effects(profile: Mapping[str, Any]) -> bool:
    """Whether a profile has mean exact effects. Otherwise its means are estimates alone."""
    # Counts of a run that goes on have none.
    return any(mean is not None for row in profile.get("mean_effect", ()) for mean in row)


def all_exact(profile: Mapping[str, Any]) -> bool:
    """Whether all facts of a profile have exact effects, so that its mean effects have no interval."""
    return has_effects(profile) and profile["sampled"] == profile["facts"]


def strongest_cells(
    profile: Mapping[str, Any], count: int = 3, measure: str | None = None
) -> dict[str, list[tuple[float, int, str]]]:
    """For each role, its layers with the largest means of either sign, as (mean, layer, role).

    Position 0, most often an attention sink, is apart: see :func:`strongest_at`.
    """
    found = {role: strongest_at(profile, role, count, measure) for role in profile["roles"] if role != POSITION_0}
    return {role: cells for role, cells in found.items() if cells}


def strongest_at(
    profile: Mapping[str, Any], role: str, count: int = 3, measure: str | None = None
) -> list[tuple[float, int, str]]:
    """The layers with the largest means of either sign at a role, as (mean, layer, role).

    Mean effects and magnitudes count only where their 95% interval excludes 0.

    Args:
        profile: The profile, as the summary has it.
        role: The role.
        count: How many layers, at most.
        measure: `mean_effect`, `mean_magnitude` or `mean_score`. Default: the mean effects where the profile has
            any, the mean scores where it has none.
    """
    measure = measure or ("mean_effect" if has_effects(profile) else "mean_score")
    column = profile["roles"].index(role)
    cells = [
        (row[column], layer, role)
        for layer, row in zip(profile["layers"], profile[measure], strict=True)
        if row[column] is not None
    ]
    if measure != "mean_score":
        cells = [cell for cell in cells if excludes_0(interval_at(profile, cell[1], role, measure))]
    return sorted(cells, key=lambda cell: -abs(cell[0]))[:count]


def interval_at(
    profile: Mapping[str, Any], layer: int, role: str, measure: str = "mean_effect"
) -> tuple[float, float]:
    """The ends of the 95% confidence interval of a mean effect or mean magnitude that is not None."""
    place, column = profile["layers"].index(layer), profile["roles"].index(role)
    low, high = next((low, high) for name, low, high in KINDS if name == measure)
    return profile[low][place][column], profile[high][place][column]


def mean_text(profile: Mapping[str, Any], cell: tuple[float, int, str], measure: str) -> str:
    """A mean of :func:`strongest_at` with its 95% confidence interval, if it has one."""
    mean, layer, role = cell
    # A magnitude has no sign.
    sign = "" if measure == "mean_magnitude" else "+"
    if measure == "mean_score" or all_exact(profile):
        return f"{mean:{sign}.3f}"
    low, high = interval_at(profile, layer, role, measure)
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def excludes_0(interval: tuple[float, float]) -> bool:
    """Whether an interval lies to one side of 0."""
    low, high = interval
    return low > 0 or high < 0
