"""Windows: the exact effects of several layers' writes together, and the sums of scores that estimate them.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from lit_attr.evaluation.profile import ProfileSums
from lit_attr.evaluation.validity.agreement import Compared, agreement_report
from lit_attr.records.schema import ExactRecord


def windows_report(
    layers: Sequence[int], component: str, rule: str, compared: Sequence[tuple[ExactRecord, Compared]]
) -> dict[str, Any] | None:
    """Agreement of the effects of windows with the sums of their layers' scores, and the effects' means by role.

    Effects do not add up: a model may do without any one of the layers, and not without all of them (Meng et al.,
    2022, figure 2, restore ten MLPs at once).

    Args:
        layers: The layers of the scores, in their order.
        component: The component.
        rule: The rule of the scores.
        compared: The contrasts with exact effects.

    Returns:
        In JSON types: the number of layers of a window as `size`, the lowest layer of each window as `layers`,
        Pearson's correlation over all windows with its 95% interval, and for each of them at each role the mean
        effect over the contrasts, with its standard error. None where no window was replaced.
    """
    summed, size = [], 0
    for record, each in compared:
        if record.windows is UNSET or component not in record.windows.effects:
            continue
        size, effects_LT = record.windows.size, record.windows.effects[component]
        sums_LT = np.lib.stride_tricks.sliding_window_view(each.scores_LT, size, axis=0).sum(-1)
        if sums_LT.shape == effects_LT.shape:
            summed.append(each._replace(scores_LT=sums_LT, effects_LT=effects_LT, is_exact_LT=None))
    if not summed:
        return None
    lowest = layers[: len(layers) - size + 1]
    means = ProfileSums(lowest, component, rule)
    for each in summed:
        means.add(each.effects_LT, each.roles, each.subject_span)
    profile, agreement = means.compute(), agreement_report(lowest, summed)
    return {
        "size": size,
        "layers": list(lowest),
        "contrasts": len(summed),
        "pearson": agreement["pearson"],
        "interval": agreement["intervals"]["pearson"],
        "roles": profile["roles"],
        "mean_effect": profile["mean_score"],
        "standard_error": profile["standard_error"],
    }
