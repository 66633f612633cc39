"""Mean exact effects over all facts of a run, from the scores of all and the exact effects of a random sample.

The mean score of all contrasts estimates the mean exact effect with a bias that does not shrink with their number.
The sample says how large the bias is. The mean effect is λ times the mean score of all, plus the mean over the
sample of (exact effect − λ · score). This is prediction-powered inference (Angelopoulos et al., 2023, arXiv
2311.01453), in survey sampling the regression estimator (Cochran, 1977, chapter 7). The better the scores, the
narrower the interval.

Axes: F facts, K kinds of means (signed, magnitude), L layers, R rows of means (in the order of `MEAN_ROLES`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
# With fewer sampled facts than that, neither λ nor the interval is to be relied on.
FEWEST_FACTS = 8
# Scores whose variance is a smaller share of the sample's differ by rounding only.
CONSTANT = 1e-12

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


class Sums(NamedTuple):
    """Sums over contrasts.

    Attributes:
        totals_KLR: Of their means over the tokens of a row.
        counts_R: How many of them have the row.
    """

    totals_KLR: Values
    counts_R: Counts


class Sample(NamedTuple):
    """Sums over the sampled contrasts of each fact.

    Attributes:
        scores_FKLR: Of the means of the scores over the tokens of a row.
        effects_FKLR: Of those of the exact effects.
        counts_FR: How many of them have the row.
    """

    scores_FKLR: Values
    effects_FKLR: Values
    counts_FR: Counts


class MeanEffects(NamedTuple):
    """Mean exact effects and the ends of their 95% confidence intervals, in logits; NaN where they are unknown."""

    means_KLR: Values
    low_KLR: Values
    high_KLR: Values


def mean_effects(scored: Sums, sample: Sample, exact: Sums) -> MeanEffects:
    """The mean exact effects over all contrasts, `scored` and `exact` together.

    A row of which every contrast has exact effects has an interval of no width. Another one with fewer than
    `FEWEST_FACTS` sampled facts is unknown.

    Args:
        scored: The scores of the contrasts that the sample is drawn from, the sample's among them.
        sample: A random sample of these.
        exact: The exact effects of further contrasts that all have them.
    """
    # Imported here: it takes most of a second.
    from scipy.stats import t

    means_KLR, half_KLR = np.full_like(scored.totals_KLR, np.nan), np.full_like(scored.totals_KLR, np.nan)
    for row, count in enumerate(scored.counts_R.tolist()):
        has_row_F = sample.counts_FR[:, row] > 0
        facts, counts_F = int(has_row_F.sum()), sample.counts_FR[has_row_F, row]
        share = counts_F.sum() / max(count, 1)
        exact_KL, exact_count = exact.totals_KLR[..., row], exact.counts_R[row]
        if not count + exact_count or (count and facts < FEWEST_FACTS and share < 1):
            continue
        mean_KL, error_KL = np.zeros((2, *exact_KL.shape))
        if share == 1:
            mean_KL = sample.effects_FKLR[has_row_F, ..., row].sum(0) / count
        elif count:
            mean_KL, error_KL = _regression_estimate(
                sample.scores_FKLR[has_row_F, ..., row],
                sample.effects_FKLR[has_row_F, ..., row],
                counts_F,
                scored.totals_KLR[..., row] / count,
            )
            # The sample is a part of the contrasts that the mean is of.
            error_KL *= t.ppf((1 + CONFIDENCE) / 2, facts - 1) * np.sqrt(1 - share)
        means_KLR[..., row] = (mean_KL * count + exact_KL) / (count + exact_count)
        half_KLR[..., row] = error_KL * count / (count + exact_count)
    return MeanEffects(means_KLR, means_KLR - half_KLR, means_KLR + half_KLR)


def _regression_estimate(
    scores_FKL: Values, effects_FKL: Values, counts_F: Counts, mean_score_KL: Values
) -> tuple[Values, Values]:
    """The mean effect and its standard error, by the jackknife: the estimate is made again without each fact.

    The jackknife counts that λ is fitted to the same few facts; residuals around one λ for all would make the
    intervals too narrow. Where λ is 0 and each fact has one contrast, it is the standard deviation over the
    square root of the number of facts.

    Args:
        scores_FKL: For each sampled fact, the sum of the scores of its contrasts.
        effects_FKL: That of their exact effects.
        counts_F: How many contrasts these are, at least one.
        mean_score_KL: The mean score over all contrasts.
    """
    facts = len(counts_F)
    counts_F11 = counts_F[:, None, None].astype(np.float64)
    total = counts_F.sum()
    effect_KL, score_KL = effects_FKL.sum(0) / total, scores_FKL.sum(0) / total
    u_FKL, v_FKL = effects_FKL - effect_KL * counts_F11, scores_FKL - score_KL * counts_F11
    uv_KL, vv_KL = (u_FKL * v_FKL).sum(0), (v_FKL * v_FKL).sum(0)
    mean_KL = effect_KL + _weight(uv_KL, vv_KL, vv_KL) * (mean_score_KL - score_KL)

    # What is added to each deviation when the means are those without the fact.
    left_F11 = total - counts_F11
    du_FKL, dv_FKL = u_FKL / left_F11, v_FKL / left_F11

    def without_each(products_FKL: Values) -> Values:
        rest_FKL: Values = products_FKL.sum(0) - products_FKL
        return rest_FKL

    squares_F11 = without_each(counts_F11 * counts_F11)
    uc_FKL, vc_FKL = without_each(u_FKL * counts_F11), without_each(v_FKL * counts_F11)
    uv_FKL = without_each(u_FKL * v_FKL) + du_FKL * vc_FKL + dv_FKL * uc_FKL + du_FKL * dv_FKL * squares_F11
    vv_FKL = without_each(v_FKL * v_FKL) + 2 * dv_FKL * vc_FKL + dv_FKL * dv_FKL * squares_F11
    weights_FKL = _weight(uv_FKL, vv_FKL, vv_KL)
    means_FKL = effect_KL - du_FKL + weights_FKL * (mean_score_KL - score_KL + dv_FKL)
    deviations_FKL = means_FKL - means_FKL.mean(0)
    return mean_KL, np.sqrt((facts - 1) / facts * (deviations_FKL * deviations_FKL).sum(0))


def _weight(products: Values, squares: Values, whole_KL: Values) -> Values:
    """λ, the slope of effects on scores, between 0 (the sample's effects alone) and 1 (scores at face value)."""
    is_defined = squares > CONSTANT * whole_KL
    weights: Values = np.divide(products, squares, out=np.zeros_like(products), where=is_defined)
    return weights.clip(0, 1)
