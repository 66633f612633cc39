"""Confidence intervals over facts, against plain loops and simulations.

Axes: F facts, N cells, M moments.
"""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.evaluation.validity.intervals import (
    correlation_interval,
    moments_of,
    ratio_interval,
    resample_weights_SF,
)


def facts(generator: np.random.Generator, count: int, rho: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Facts with 3 to 8 cells each, and a scale of their own."""
    found = []
    for _ in range(count):
        scale, cells = generator.uniform(0.5, 2), generator.integers(3, 9)
        x_N = scale * generator.standard_normal(cells)
        noise_N = scale * generator.standard_normal(cells)
        found.append((x_N, rho * x_N + np.sqrt(1 - rho**2) * noise_N))
    return found


def z_of(cells: list[tuple[np.ndarray, np.ndarray]]) -> float:
    x_N, y_N = (np.concatenate(values) for values in zip(*cells, strict=True))
    return float(np.arctanh(np.corrcoef(x_N, y_N)[0, 1]))


def jackknife_error(cells: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The standard error of z by leaving out one fact after the other."""
    count = len(cells)
    left_out = np.array([z_of(cells[:place] + cells[place + 1 :]) for place in range(count)])
    return float(np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()))


def test_correlation_interval_is_that_of_a_loop_with_the_jackknife():
    generator = np.random.default_rng(1)
    cells = facts(generator, 60, 0.6)
    weights_SF = resample_weights_SF(60)
    z, error = z_of(cells), jackknife_error(cells)
    ts = []
    for weights_F in weights_SF[:300].astype(int):
        resample = [cell for cell, weight in zip(cells, weights_F, strict=True) for _ in range(weight)]
        ts.append((z_of(resample) - z) / jackknife_error(resample))
    low, high = np.quantile(ts, [0.025, 0.975])
    expected = np.tanh([z - high * error, z - low * error])
    found = correlation_interval(np.array([moments_of(*cell) for cell in cells]), weights_SF[:300])
    # The linearised error is the jackknife's up to terms of second order.
    assert found == pytest.approx(expected, abs=0.01)


def test_correlation_intervals_contain_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(2)
    contained = []
    for seed in range(200):
        moments_FM = np.array([moments_of(*cell) for cell in facts(generator, 25, 0.7)])
        low, high = correlation_interval(moments_FM, resample_weights_SF(25, seed))
        contained.append(low <= 0.7 <= high)
    # Of 200, a share of 95% has a standard error of 1.5%.
    assert 0.91 <= np.mean(contained) <= 0.99


def test_ratio_interval_is_the_percentiles_of_the_resamples():
    generator = np.random.default_rng(3)
    same_F, cells_F = generator.integers(0, 5, 30).astype(float), generator.integers(5, 9, 30).astype(float)
    weights_SF = resample_weights_SF(30)
    shares = [
        np.repeat(same_F, weights).sum() / np.repeat(cells_F, weights).sum() for weights in weights_SF.astype(int)
    ]
    assert ratio_interval(same_F, cells_F, weights_SF) == pytest.approx(np.quantile(shares, [0.025, 0.975]))


def test_resamples_draw_as_many_facts_as_there_are_and_do_not_change():
    weights_SF = resample_weights_SF(7)
    assert (weights_SF.sum(1) == 7).all() and weights_SF.std() > 0.5
    assert np.array_equal(weights_SF, resample_weights_SF(7))


def test_one_fact_and_constant_values_have_no_interval():
    weights_SF = resample_weights_SF(2)
    moments_FM = np.array([moments_of(np.arange(4.0), np.arange(4.0) ** 2), np.zeros(6)])
    assert correlation_interval(moments_FM, weights_SF) is None
    assert ratio_interval(np.array([1.0, 0.0]), np.array([3.0, 0.0]), weights_SF) is None
    constant_FM = np.array([moments_of(np.arange(4.0), np.zeros(4))] * 2)
    assert correlation_interval(constant_FM, weights_SF) is None


def test_a_perfect_correlation_is_its_own_interval():
    generator = np.random.default_rng(4)
    x_FN = generator.standard_normal((9, 5))
    low, high = correlation_interval(np.array([moments_of(x_N, 2 * x_N) for x_N in x_FN]), resample_weights_SF(9))
    assert low == pytest.approx(1, abs=1e-6) and high == pytest.approx(1, abs=1e-6)
