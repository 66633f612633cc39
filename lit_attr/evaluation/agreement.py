"""Agreement of scores with the exact effects that they estimate.

Axes: L layers, T tokens of one contrast, R roles (in the order of `ROLES`), N cells (a layer at a token).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.roles import ROLES, role_mask_RT

# How many of the cells with the largest magnitude are compared with those of the exact effects: of all cells of a
# contrast, and of those in one layer or at one role.
TOP, FEWER_TOP = 10, 3
# Below this, the scores miss more than three quarters of the variance of the exact effects.
RELIABLE = 0.5
# Values whose variance is a smaller share of their mean square differ by rounding only.
CONSTANT = 1e-12

Values = NDArray[np.float64]


class Compared(NamedTuple):
    """A contrast's scores and exact effects.

    Attributes:
        scores_LT: Scores in logits.
        effects_LT: Exact effects in logits: what the logit difference loses without the write.
        roles: The role of each token.
        subject_span: The subject's first token, and the one after its last.
    """

    scores_LT: Values
    effects_LT: Values
    roles: Sequence[str]
    subject_span: Sequence[int]


def agreement_report(layers: Sequence[int], compared: Sequence[Compared]) -> dict[str, Any]:
    """Agreement over all cells, in each layer, and at each role.

    Each part has Pearson's correlation over the cells of all contrasts, the share of cells that agree in sign,
    and, as means over contrasts, Spearman's correlation and the share of the cells with the largest scores that
    are among those with the largest effects. A cell whose score and effect are both 0 has no sign and no rank: at
    the last layer these are all cells but those of the last token.

    Args:
        layers: The layers of the scores, in their order.
        compared: The contrasts.

    Returns:
        The report in JSON types; a number is None where there are too few cells for it.
    """
    masks = [role_mask_RT(each.roles, each.subject_span) for each in compared]
    by_layer = {
        str(layer): agreement_of(
            [(each.scores_LT[place], each.effects_LT[place]) for each in compared], top=FEWER_TOP
        )
        for place, layer in enumerate(layers)
    }
    by_role = {
        role: agreement_of(
            [
                (each.scores_LT[:, mask_RT[at]].ravel(), each.effects_LT[:, mask_RT[at]].ravel())
                for each, mask_RT in zip(compared, masks, strict=True)
            ],
            top=FEWER_TOP,
        )
        for at, role in enumerate(ROLES)
    }
    return {
        "contrasts": len(compared),
        "ablation": "zero",
        **agreement_of([(each.scores_LT.ravel(), each.effects_LT.ravel()) for each in compared], top=TOP),
        "by_layer": by_layer,
        "by_role": by_role,
    }


def agreement_of(pairs: Sequence[tuple[Values, Values]], *, top: int) -> dict[str, float | None]:
    """Agreement over one kind of cells.

    Args:
        pairs: Scores and effects of each contrast's cells.
        top: How many cells count as the largest. Contrasts with no more cells have no overlap.
    """
    # Imported here: it takes most of a second, and the verdict needs none of it.
    from scipy.stats import rankdata

    none = np.empty(0)
    scores_N = np.concatenate([none, *(score_N for score_N, _ in pairs)])
    effects_N = np.concatenate([none, *(effect_N for _, effect_N in pairs)])
    either_N = (scores_N != 0) | (effects_N != 0)
    same_sign = np.sign(scores_N[either_N]) == np.sign(effects_N[either_N])
    correlations, overlaps = [], []
    for pair in pairs:
        either_N = (pair[0] != 0) | (pair[1] != 0)
        score_N, effect_N = pair[0][either_N], pair[1][either_N]
        if len(score_N) > top:
            overlaps.append(len(_largest(score_N, top) & _largest(effect_N, top)) / top)
        correlation = pearson(rankdata(score_N), rankdata(effect_N))
        if correlation is not None:
            correlations.append(correlation)
    return {
        "pearson": pearson(scores_N, effects_N),
        "spearman": _mean(correlations),
        "same_sign": _mean(same_sign),
        f"top_{top}_overlap": _mean(overlaps),
    }


def pearson(scores_N: Values, effects_N: Values) -> float | None:
    """Pearson's correlation; None where one of the two does not vary, or varies by rounding only."""
    centred = []
    for values_N in (scores_N, effects_N):
        if not len(values_N):
            return None
        centred_N = values_N - values_N.mean()
        if not centred_N @ centred_N > CONSTANT * (values_N @ values_N):
            return None
        centred.append(centred_N / np.linalg.norm(centred_N))
    return float(centred[0] @ centred[1])


def verdict(report: Mapping[str, Any]) -> str:
    """A report in one plain line."""
    by_layer = {layer: agreement["pearson"] for layer, agreement in report["by_layer"].items()}
    poor = {layer: found for layer, found in by_layer.items() if found is not None and found < RELIABLE}
    overall = report["pearson"]
    line = f"{report['contrasts']} contrasts compared with their exact effects (zero ablation): "
    line += "r is undefined" if overall is None else f"r = {overall:.2f} over all layers and tokens"
    if poor:
        named = ", ".join(f"{layer} (r = {found:.2f})" for layer, found in poor.items())
        line += f"; do not rely on the scores of layer{'s' if len(poor) > 1 else ''} {named}"
    elif overall is not None and overall < RELIABLE:
        line += "; do not compare scores across layers"
    return line


def _largest(values_N: Values, count: int) -> set[int]:
    return set(np.argsort(-np.abs(values_N), kind="stable")[:count].tolist())


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
