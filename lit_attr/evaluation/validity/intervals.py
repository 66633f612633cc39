"""95% confidence intervals by a bootstrap over facts.

The contrasts of one fact and the cells of one contrast depend on each other, so facts are what is resampled. Every
number here is a function of sums over facts, and a resample is a weighted sum.

Axes: F facts, S resamples, M the six moments n, Σx, Σy, Σx², Σy², Σxy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
QUANTILES = (0.025, 0.975)
# Correlations are kept this far from 1, where Fisher's z is infinite.
MARGIN = 1e-12

Values = NDArray[np.float64]
Interval = list[float]


def resample_weights_SF(facts: int, seed: int = 0) -> Values:
    """How often each resample draws each fact, with replacement: the same for the same number of facts."""
    if not facts:
        return np.empty((RESAMPLES, 0))
    generator = np.random.default_rng(seed)
    return generator.multinomial(facts, np.full(facts, 1 / facts), size=RESAMPLES).astype(np.float64)


def ratio_interval(numerator_F: Values, denominator_F: Values, weights_SF: Values) -> Interval | None:
    """The percentile interval of Σ numerator / Σ denominator, such as a share or a mean.

    Args:
        numerator_F: Each fact's part of the numerator.
        denominator_F: Each fact's part of the denominator.
        weights_SF: The resamples, see :func:`resample_weights_SF`.

    Returns:
        None where fewer than two facts have a part.
    """
    if np.count_nonzero(denominator_F) < 2:
        return None
    bottom_S = weights_SF @ denominator_F
    ratio_S = (weights_SF @ numerator_F)[bottom_S > 0] / bottom_S[bottom_S > 0]
    low, high = np.quantile(ratio_S, QUANTILES)
    return [float(low), float(high)]


def correlation_interval(moments_FM: Values, weights_SF: Values) -> Interval | None:
    """The bootstrap-t interval of Pearson's correlation over the cells of all facts.

    The interval is taken on Fisher's z, studentised by the linearised (infinitesimal jackknife) standard error of
    each resample (Efron & Tibshirani, 1993, chapters 12 and 21). A few facts with very large effects can dominate
    a correlation; the percentile interval is then too narrow.

    Args:
        moments_FM: Each fact's moments, see :func:`moments_of`.
        weights_SF: The resamples, see :func:`resample_weights_SF`.

    Returns:
        None where fewer than two facts have cells, or where either of the two values does not vary.
    """
    if np.count_nonzero(moments_FM[:, 0]) < 2:
        return None
    ones_1F = np.ones((1, len(moments_FM)))
    (z,), (error,) = _fisher_z(moments_FM, ones_1F)
    z_S, error_S = _fisher_z(moments_FM, weights_SF)
    is_defined_S = np.isfinite(z_S) & np.isfinite(error_S) & (error_S > 0)
    if not np.isfinite(z) or not is_defined_S.any():
        return None
    low_t, high_t = np.quantile((z_S[is_defined_S] - z) / error_S[is_defined_S], QUANTILES)
    return [float(np.tanh(z - high_t * error)), float(np.tanh(z - low_t * error))]


def moments_of(x_N: Values, y_N: Values) -> Values:
    """The six moments of some cells, in the order of the axis M."""
    return np.array([len(x_N), x_N.sum(), y_N.sum(), x_N @ x_N, y_N @ y_N, x_N @ y_N], dtype=np.float64)


def _fisher_z(moments_FM: Values, weights_SF: Values) -> tuple[Values, Values]:
    """Fisher's z of the correlation in each resample, and its linearised standard error."""
    facts, kinds = moments_FM.shape
    squares_FMM = moments_FM[:, :, None] * moments_FM[:, None]
    sums_SM = weights_SF @ moments_FM
    squares_SMM = (weights_SF @ squares_FMM.reshape(facts, -1)).reshape(-1, kinds, kinds)
    n_S, x_S, y_S, xx_S, yy_S, xy_S = sums_SM.T
    one_S, zero_S = np.ones_like(n_S), np.zeros_like(n_S)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x_S, mean_y_S = x_S / n_S, y_S / n_S
        x_spread_S, y_spread_S = xx_S - x_S * mean_x_S, yy_S - y_S * mean_y_S
        r_S = (xy_S - x_S * mean_y_S) / np.sqrt(x_spread_S * y_spread_S)
        r_S = r_S.clip(MARGIN - 1, 1 - MARGIN)
        # Derivatives of the three centred sums with respect to the moments.
        by_x_SM = np.stack([mean_x_S**2, -2 * mean_x_S, zero_S, one_S, zero_S, zero_S], 1)
        by_y_SM = np.stack([mean_y_S**2, zero_S, -2 * mean_y_S, zero_S, one_S, zero_S], 1)
        by_xy_SM = np.stack([mean_x_S * mean_y_S, -mean_y_S, -mean_x_S, zero_S, zero_S, one_S], 1)
        slope_SM = by_xy_SM / np.sqrt(x_spread_S * y_spread_S)[:, None] - r_S[:, None] / 2 * (
            by_x_SM / x_spread_S[:, None] + by_y_SM / y_spread_S[:, None]
        )
        slope_SM /= (1 - r_S**2)[:, None]
        variance_S = np.einsum("sm,smn,sn->s", slope_SM, squares_SMM, slope_SM) * facts / (facts - 1)
        return np.arctanh(r_S), np.sqrt(variance_S.clip(min=0))
