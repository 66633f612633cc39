"""Agreement of scores with the exact effects that they estimate.

Axes: L layers, T tokens of one contrast, R rows of means (in the order of `MEAN_ROLES`), C contrasts, F facts, N
cells (a layer at a token), M moments, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_attr.evaluation.validity.intervals import (
    correlation_interval,
    moments_of,
    ratio_interval,
    resample_weights_SF,
)
from lit_attr.facts.roles import MEAN_ROLES, mean_mask_RT
from lit_attr.text import counted

# How many of the cells with the largest magnitude are compared with those of the exact effects: of all cells of a
# contrast, and of those in one layer or at one role.
TOP, FEWER_TOP = 10, 3
# Below this, the scores miss more than three quarters of the variance of the exact effects.
RELIABLE = 0.5
# Of more layers than this, their number says as much.
MAX_NAMED = 6
# Values whose variance is a smaller share of their mean square differ by rounding only.
CONSTANT = 1e-12

Values = NDArray[np.float64]
Cells = tuple[Values, Values]


class Compared(NamedTuple):
    """A contrast's scores and exact effects.

    Attributes:
        scores_LT: Scores in logits.
        effects_LT: Exact effects in logits: what the logit difference loses without the write.
        roles: The role of each token.
        subject_span: The subject's first token, and the one after its last.
        fact: The id of the contrast's fact. Facts are what the intervals resample.
        is_exact_LT: The cells whose score is the exact effect, in an adaptive run.
    """

    scores_LT: Values
    effects_LT: Values
    roles: Sequence[str]
    subject_span: Sequence[int]
    fact: int | str
    is_exact_LT: NDArray[np.bool_] | None = None


def agreement_report(
    layers: Sequence[int], compared: Sequence[Compared], resolution: float = 0.0, ablation: str = "zero"
) -> dict[str, Any]:
    """Agreement over all cells, over all but those of the first token, in each layer, and at each role.

    Each part has Pearson's correlation over the cells of all contrasts, the share of cells that agree in sign,
    and, as means over contrasts, Spearman's correlation and the share of the cells with the largest scores that
    are among those with the largest effects. `intervals` has the 95% confidence interval of each, by a bootstrap
    over facts. A cell whose effect is rounding noise has no sign and no rank: in the last layer these are all
    cells but those of the last token.

    In an adaptive run `estimated_cells` is the agreement over the cells that are not exact by construction.

    Args:
        layers: The layers of the scores, in their order.
        compared: The contrasts.
        resolution: Effects of smaller magnitude are rounding noise, in logits.
        ablation: What replaced the writes.

    Returns:
        The report in JSON types; a number or an interval is None where there are too few cells for it.
    """
    facts = Facts.of([each.fact for each in compared])
    masks = [mean_mask_RT(each.roles, each.subject_span) for each in compared]

    def of_tokens(masks_T: Sequence[NDArray[np.bool_]], top: int) -> dict[str, Any]:
        cells = [
            (each.scores_LT[:, mask_T].ravel(), each.effects_LT[:, mask_T].ravel())
            for each, mask_T in zip(compared, masks_T, strict=True)
        ]
        return agreement_of(cells, facts, top=top, resolution=resolution)

    return {
        "contrasts": len(compared),
        "facts": len(facts.weights_SF.T),
        "ablation": ablation,
        "resolution": resolution,
        **of_tokens([np.ones(len(each.roles), dtype=np.bool_) for each in compared], TOP),
        **_estimated(compared, facts, resolution),
        "without_position_0": of_tokens([np.arange(len(each.roles)) > 0 for each in compared], TOP),
        "by_layer": {
            str(layer): agreement_of(
                [(each.scores_LT[place], each.effects_LT[place]) for each in compared],
                facts,
                top=FEWER_TOP,
                resolution=resolution,
            )
            for place, layer in enumerate(layers)
        },
        "by_role": {
            role: of_tokens([mask_RT[place] for mask_RT in masks], FEWER_TOP)
            for place, role in enumerate(MEAN_ROLES)
        },
    }


def agreement_together(
    components: Mapping[str, Sequence[Compared]], reports: Mapping[str, Mapping[str, Any]], resolution: float = 0.0
) -> dict[str, Any]:
    """Agreement over the cells of several components together, which is what an adaptive run promises.

    Args:
        components: The contrasts of each component, in one order.
        reports: The agreement of each component, see :func:`agreement_report`.
        resolution: Effects of smaller magnitude are rounding noise, in logits.

    Returns:
        In JSON types: the figures of `agreement_report` over all cells, and as `by_layer` Pearson's correlation in
        each layer of each component.
    """
    together = [_stacked(parts) for parts in zip(*components.values(), strict=True)]
    facts = Facts.of([each.fact for each in together])
    cells = [(each.scores_LT.ravel(), each.effects_LT.ravel()) for each in together]
    return {
        "contrasts": len(together),
        "resolution": resolution,
        **agreement_of(cells, facts, top=TOP, resolution=resolution),
        **_estimated(together, facts, resolution),
        "by_layer": {
            f"{layer} ({component})": {"pearson": part["pearson"]}
            for component, report in reports.items()
            for layer, part in report["by_layer"].items()
        },
    }


def _stacked(parts: Sequence[Compared]) -> Compared:
    """One contrast's cells of several components, one component's layers after the other's."""
    exact = [each.is_exact_LT for each in parts if each.is_exact_LT is not None]
    return parts[0]._replace(
        scores_LT=np.concatenate([each.scores_LT for each in parts]),
        effects_LT=np.concatenate([each.effects_LT for each in parts]),
        is_exact_LT=np.concatenate(exact) if len(exact) == len(parts) else None,
    )


def _estimated(compared: Sequence[Compared], facts: Facts, resolution: float) -> dict[str, Any]:
    cells = [
        (each.scores_LT[~each.is_exact_LT], each.effects_LT[~each.is_exact_LT])
        for each in compared
        if each.is_exact_LT is not None
    ]
    if len(cells) < len(compared) or not cells:
        return {}
    return {"estimated_cells": agreement_of(cells, facts, top=TOP, resolution=resolution)}


class Facts(NamedTuple):
    """Which contrasts are of one fact, and the resamples of the facts.

    Attributes:
        places_C: The place of each contrast's fact.
        weights_SF: How often each resample draws each fact.
    """

    places_C: NDArray[np.int64]
    weights_SF: Values

    @classmethod
    def of(cls, ids: Sequence[int | str]) -> Facts:
        """Groups contrasts by the ids of their facts."""
        places = {fact: place for place, fact in enumerate(dict.fromkeys(ids))}
        places_C = np.array([places[fact] for fact in ids], dtype=np.int64)
        return cls(places_C, resample_weights_SF(len(places)))

    def sums(self, values_C: ArrayLike) -> Values:
        """Sums over the contrasts of each fact, axis F first."""
        array_C = np.asarray(values_C, dtype=np.float64)
        sums_F = np.zeros((self.weights_SF.shape[1], *array_C.shape[1:]))
        np.add.at(sums_F, self.places_C, array_C)
        return sums_F


class _Ranks(NamedTuple):
    """One contrast's signs and ranks: a sum and what it is divided by, for each figure."""

    spearman: tuple[float, int]
    same_sign: tuple[int, int]
    overlap: tuple[float, int]


def agreement_of(
    cells: Sequence[Cells], facts: Facts, *, top: int, resolution: float = 0.0
) -> dict[str, float | dict[str, list[float] | None] | None]:
    """Agreement over one kind of cells.

    Args:
        cells: Scores and effects of each contrast's cells.
        facts: The contrasts' facts.
        top: How many cells count as the largest. Contrasts with no more cells have no overlap.
        resolution: Effects of smaller magnitude are rounding noise, in logits.
    """
    none = np.empty(0)
    scores_N = np.concatenate([none, *(score_N for score_N, _ in cells)])
    effects_N = np.concatenate([none, *(effect_N for _, effect_N in cells)])
    correlation = pearson(scores_N, effects_N)
    found: dict[str, float | None] = {"pearson": correlation}
    intervals: dict[str, list[float] | None] = {"pearson": None}
    if correlation is not None:
        # Moments around the mean: of raw values, they would cancel.
        means = scores_N.mean(), effects_N.mean()
        moments_CM = [moments_of(score_N - means[0], effect_N - means[1]) for score_N, effect_N in cells]
        intervals["pearson"] = correlation_interval(facts.sums(moments_CM), facts.weights_SF)
    ranks = [_ranks_of(*pair, top=top, resolution=resolution) for pair in cells]
    for name, parts_C in (
        ("spearman", [each.spearman for each in ranks]),
        ("same_sign", [each.same_sign for each in ranks]),
        (f"top_{top}_overlap", [each.overlap for each in ranks]),
    ):
        numerator_F, denominator_F = facts.sums(np.reshape(parts_C, (-1, 2))).T
        total = denominator_F.sum()
        found[name] = float(numerator_F.sum() / total) if total else None
        intervals[name] = ratio_interval(numerator_F, denominator_F, facts.weights_SF)
    return {**found, "intervals": intervals}


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
    """A report in one plain line.

    A layer is named as unreliable only where the upper end of its interval is below `RELIABLE`, and as undecided
    where the interval contains `RELIABLE`.
    """
    count = report["contrasts"]
    compared = f"{counted(count, 'contrast')} compared with {'its' if count == 1 else 'their'} exact effects"
    line = f"{compared} ({report['ablation']} ablation): "
    if report["pearson"] is None:
        line += "r is undefined"
    else:
        line += f"r = {_with_interval(report)} over all layers and tokens"
        if report["without_position_0"]["pearson"] is not None:
            line += f", {_with_interval(report['without_position_0'])} without position 0"
    if _is_below(report) is True:
        line += "; do not compare scores across layers"
    defined = {name: part for name, part in report["by_layer"].items() if part["pearson"] is not None}
    if poor := [
        f"{name} (r = {part['pearson']:.2f})" for name, part in defined.items() if _is_below(part) is True
    ]:
        line += f"; do not rely on the scores of {_layers(poor)}"
    if unclear := [name for name, part in defined.items() if _is_below(part) is None]:
        which = _layers(unclear) if len(unclear) <= MAX_NAMED else f"{len(unclear)} of {len(defined)} layers"
        line += f"; too few to tell for {which}: verify more"
    return line


def promise_line(adaptive: Mapping[str, Any], agreement: Mapping[str, Any] | None) -> str:
    """What an adaptive run was asked for, what it reached, and what it paid, in one line.

    Args:
        adaptive: What the summary has of the promise. Of a run of several components it has the `agreement` over
            the cells of all of them, which the promise is about.
        agreement: The agreement of the run's only component.
    """
    agreement = adaptive.get("agreement", agreement)
    asked, by_layer = adaptive["min_agreement"], adaptive["min_agreement_by_layer"]
    line = f"r of at least {asked} asked for"
    line += "" if by_layer is None else f", {by_layer} in each layer"
    if adaptive["exact_share"] is None:
        return f"{line}; every score is an exact effect"
    line += (
        f"; {adaptive['exact_share']:.1%} of the cells are exact, which costs about "
        f"{adaptive['exact_cost']:.1f} passes of the gradient beside the estimates; the pilot of "
        f"{adaptive['pilot']} expected r = {adaptive['expected']:.3f}"
    )
    if agreement is None or agreement["pearson"] is None:
        return f"{line}; nothing was verified"
    below = [
        name
        for name, part in agreement["by_layer"].items()
        if by_layer is not None and part["pearson"] is not None and part["pearson"] < by_layer
    ]
    is_kept = agreement["pearson"] >= asked and not below
    verified = counted(agreement["contrasts"], "verified contrast")
    line += f"; {'kept' if is_kept else 'not kept'} on the {verified}"
    if below:
        line += f", below {by_layer} in {_layers(below)}"
    estimated = agreement.get("estimated_cells")
    if estimated is not None and estimated["pearson"] is not None:
        line += f"; r = {_with_interval(estimated)} over the estimated cells alone"
    return line


def _layers(names: Sequence[str]) -> str:
    return f"layer{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _is_below(part: Mapping[str, Any]) -> bool | None:
    """Whether a correlation is below `RELIABLE`; None where its interval does not decide it."""
    interval = part["intervals"]["pearson"]
    if interval is None or interval[0] < RELIABLE <= interval[1]:
        return None
    return bool(interval[1] < RELIABLE)


def _with_interval(part: Mapping[str, Any]) -> str:
    interval = part["intervals"]["pearson"]
    ends = "no interval" if interval is None else f"95% interval {interval[0]:.2f} to {interval[1]:.2f}"
    return f"{part['pearson']:.2f} ({ends})"


def _ranks_of(scores_N: Values, effects_N: Values, *, top: int, resolution: float) -> _Ranks:
    # Imported here: it takes most of a second, and the verdict needs none of it.
    from scipy.stats import rankdata

    is_resolved_N = (np.abs(effects_N) >= resolution) & ((scores_N != 0) | (effects_N != 0))
    scores_N, effects_N = scores_N[is_resolved_N], effects_N[is_resolved_N]
    correlation = pearson(rankdata(scores_N), rankdata(effects_N))
    same = int((np.sign(scores_N) == np.sign(effects_N)).sum())
    has_overlap = len(scores_N) > top
    overlap = len(_largest(scores_N, top) & _largest(effects_N, top)) / top if has_overlap else 0.0
    return _Ranks(
        (0.0, 0) if correlation is None else (correlation, 1), (same, len(scores_N)), (overlap, int(has_overlap))
    )


def _largest(values_N: Values, count: int) -> set[int]:
    return set(np.argsort(-np.abs(values_N), kind="stable")[:count].tolist())
