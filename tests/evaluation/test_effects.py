"""Mean effects from the scores of all facts and the exact effects of a random sample.

One layer and one row unless a test says otherwise; expected numbers are computed by hand or by a loop.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.stats import t

from lit_attr.evaluation.effects import FEWEST_FACTS, MeanEffects, Sample, Sums, mean_effects

NOTHING = Sums(np.zeros((1, 1, 1)), np.array([0]))
SIGNS = np.array([1.0, -1.0] * 4)


def sums(values: ArrayLike, counts: ArrayLike | None = None) -> Sums:
    """Sums over facts, each of one contrast unless `counts` says otherwise."""
    total = np.sum(counts) if counts is not None else np.size(values)
    return Sums(np.sum(values).reshape(1, 1, 1), np.array([total]))


def sample(scores: ArrayLike, effects: ArrayLike, counts: ArrayLike | None = None) -> Sample:
    scores_FKLR, effects_FKLR = (np.reshape(each, (-1, 1, 1, 1)).astype(float) for each in (scores, effects))
    counts_F = np.ones(len(scores_FKLR), dtype=int) if counts is None else counts
    return Sample(scores_FKLR, effects_FKLR, np.reshape(counts_F, (-1, 1)))


def ends(found: MeanEffects) -> list[float]:
    return [each.item() for each in found]


def regression_estimate(scores: np.ndarray, effects: np.ndarray, counts: np.ndarray, mean_score: float) -> float:
    mean_effect = effects.sum() / counts.sum()
    residuals = scores - scores.sum() / counts.sum() * counts
    slope = residuals @ (effects - mean_effect * counts) / (residuals @ residuals) if np.ptp(scores) else 0
    return mean_effect + np.clip(slope, 0, 1) * (mean_score - scores.sum() / counts.sum())


def by_a_loop(
    scores: np.ndarray, effects: np.ndarray, counts: np.ndarray, mean_score: float, contrasts: int
) -> list[float]:
    """The estimate, made again without each fact."""
    mean = regression_estimate(scores, effects, counts, mean_score)
    without = [
        regression_estimate(*(np.delete(each, fact) for each in (scores, effects, counts)), mean_score)
        for fact in range(len(scores))
    ]
    facts = len(scores)
    error = np.sqrt((facts - 1) * np.var(without) * (1 - counts.sum() / contrasts))
    half = t.ppf(0.975, facts - 1) * error
    return [mean, mean - half, mean + half]


def test_mean_effect_of_eight_facts_of_sixteen():
    # Effects are 2 + score / 2, and 1 more or less without correlation: λ is 1 / 2.
    effects = 2 + SIGNS / 2 + np.repeat([1.0, -1.0], 4)
    others = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    found = mean_effects(sums([*SIGNS, *others]), sample(SIGNS, effects), NOTHING)
    # The mean score of all is 4 / 16, that of the sample 0.
    assert found.means_KLR.item() == pytest.approx(2 + 0.5 * 0.25)
    assert ends(found) == pytest.approx(by_a_loop(SIGNS, effects, np.ones(8), 0.25, 16))


@pytest.mark.parametrize("scores", [SIGNS, np.full(8, 0.1), np.zeros(8)])
def test_scores_without_use_leave_the_t_interval_of_the_sample(scores: np.ndarray):
    """The scores of the wrong sign, and those that do not vary, have no weight."""
    effects = -SIGNS + np.arange(8) / 8
    found = mean_effects(sums([*scores, *np.full(12, 0.1)]), sample(scores, effects), NOTHING)
    half = t.ppf(0.975, 7) * np.std(effects, ddof=1) / np.sqrt(8) * np.sqrt(1 - 8 / 20)
    mean = effects.mean()
    assert ends(found) == pytest.approx([mean, mean - half, mean + half])


def test_one_score_that_differs_has_no_slope_without_it():
    """What rounding leaves of the others' variance is no slope."""
    scores = np.array([1.0, *[0.0] * 12])
    effects = np.array([0.0, 4.0, 4.5, 3.0, 3.5, 2.5, 4.5, 4.0, 0.0, 4.5, 0.0, 3.5, 1.0])
    found = mean_effects(sums([*scores, *np.full(12, 0.9)]), sample(scores, effects), NOTHING)
    mean_score = (1 + 12 * 0.9) / 25
    assert ends(found) == pytest.approx(by_a_loop(scores, effects, np.ones(13), mean_score, 25))


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_scores_right_up_to_a_constant_leave_no_width(bias: float):
    scores = np.random.default_rng(0).standard_normal(100)
    found = mean_effects(sums(scores), sample(scores[:10], scores[:10] + bias), NOTHING)
    assert ends(found) == pytest.approx([scores.mean() + bias] * 3, abs=1e-12)


def test_facts_are_clusters_of_their_contrasts():
    """Facts of 0 to 3 contrasts; those without the row count for nothing. Kinds, layers and rows are apart."""
    generator = np.random.default_rng(1)
    shape = 60, 2, 3, 2
    counts_FR = generator.integers(0, 4, (60, 2))
    counts_F11R = counts_FR[:, None, None]
    scores_FKLR = generator.standard_normal(shape) * counts_F11R
    effects_FKLR = (0.7 * scores_FKLR + 0.3 * generator.standard_normal(shape) + 2) * counts_F11R
    chosen = generator.permutation(60) < 25
    found = mean_effects(
        Sums(scores_FKLR.sum(0), counts_FR.sum(0)),
        Sample(scores_FKLR[chosen], effects_FKLR[chosen], counts_FR[chosen]),
        Sums(np.zeros(shape[1:]), np.zeros(2, dtype=int)),
    )
    for kind, layer, row in np.ndindex(shape[1:]):
        has_row = chosen & (counts_FR[:, row] > 0)
        total = counts_FR[:, row].sum()
        expected = by_a_loop(
            scores_FKLR[has_row, kind, layer, row],
            effects_FKLR[has_row, kind, layer, row],
            counts_FR[has_row, row],
            scores_FKLR[:, kind, layer, row].sum() / total,
            total,
        )
        assert [each[kind, layer, row] for each in found] == pytest.approx(expected)


def test_a_sample_of_all_facts_leaves_no_width():
    generator = np.random.default_rng(2)
    scores, effects = generator.standard_normal((2, 20))
    found = mean_effects(sums(scores), sample(scores, effects), NOTHING)
    assert ends(found) == pytest.approx([effects.mean()] * 3)
    few = mean_effects(sums([1.0]), sample([1.0], [5.0]), NOTHING)
    assert ends(few) == [5.0] * 3


@pytest.mark.parametrize("facts", [0, 1, FEWEST_FACTS - 1])
def test_few_sampled_facts_say_nothing(facts: int):
    generator = np.random.default_rng(3)
    scores, effects = generator.standard_normal((2, 20))
    found = mean_effects(sums(scores), sample(scores[:facts], effects[:facts]), NOTHING)
    assert np.isnan(ends(found)).all()
    # Neither do several contrasts of each.
    several = sample(scores[:facts], effects[:facts], np.full(facts, 2))
    assert np.isnan(ends(mean_effects(sums(scores, np.full(20, 2)), several, NOTHING))).all()


def test_a_row_that_no_contrast_has_is_unknown():
    assert np.isnan(ends(mean_effects(NOTHING, sample([], []), NOTHING))).all()


def test_contrasts_that_are_exact_stand_for_themselves():
    generator = np.random.default_rng(4)
    scores, effects = generator.standard_normal((2, 30))
    alone = ends(mean_effects(sums(scores), sample(scores[:10], effects[:10]), NOTHING))
    # 10 further contrasts of mean 5: the mean is 30 parts estimated and 10 parts known.
    found = ends(mean_effects(sums(scores), sample(scores[:10], effects[:10]), sums(np.full(10, 5.0))))
    assert found == pytest.approx([0.75 * end + 0.25 * 5 for end in alone])
    assert ends(mean_effects(NOTHING, sample([], []), sums([1.0, 2.0]))) == [1.5] * 3


def coverage(scores: np.ndarray, effects: np.ndarray, size: int, draws: int) -> tuple[float, float]:
    """How often the intervals of random samples cover the mean, and their median width."""
    generator = np.random.default_rng(5)
    widths, covers = [], []
    for _ in range(draws):
        chosen = generator.choice(len(scores), size, replace=False)
        _, low, high = ends(mean_effects(sums(scores), sample(scores[chosen], effects[chosen]), NOTHING))
        widths.append(high - low)
        covers.append(low <= effects.mean() <= high)
    return float(np.mean(covers)), float(np.median(widths))


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("tails", [3, 100])
def test_intervals_cover_the_mean(size: int, tails: int):
    """Of scores that are biased and too large, for errors with heavy tails and with nearly normal ones."""
    generator = np.random.default_rng(6)
    scores = 1 + generator.standard_t(5, 200)
    effects = 0.5 * scores - 0.4 + 0.3 * generator.standard_t(tails, 200)
    covered, width = coverage(scores, effects, size, 1000)
    assert 0.92 <= covered <= 0.98
    _, without_scores = coverage(np.zeros(200), effects, size, 200)
    assert width < 0.8 * without_scores


def test_the_weight_is_fitted_in_each_leave_out():
    """With residuals around one weight for all, the interval of few facts would be too narrow."""
    generator = np.random.default_rng(7)
    scores, effects = generator.standard_normal((2, 400))
    effects += 0.5 * scores
    naive, ours = [], []
    for _ in range(1000):
        chosen = generator.choice(400, 8, replace=False)
        slope = np.clip(np.cov(scores[chosen], effects[chosen])[0, 1] / np.var(scores[chosen], ddof=1), 0, 1)
        mean = effects[chosen].mean() + slope * (scores.mean() - scores[chosen].mean())
        error = np.std(effects[chosen] - slope * scores[chosen], ddof=1) * np.sqrt((1 - 8 / 400) / 8)
        naive.append(abs(mean - effects.mean()) <= t.ppf(0.975, 7) * error)
        _, low, high = ends(mean_effects(sums(scores), sample(scores[chosen], effects[chosen]), NOTHING))
        ours.append(low <= effects.mean() <= high)
    assert np.mean(naive) < 0.93 < np.mean(ours)
