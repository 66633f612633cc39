"""Means by role and layer, and counts of answers, on numbers added up by hand."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from lit_attr.evaluation.answers import AnswerCounts
from lit_attr.evaluation.effects import Sample, Sums, mean_effects
from lit_attr.evaluation.profile import (
    KINDS,
    CheckedMeans,
    ContrastMeans,
    EffectProfile,
    ProfileSums,
    contrast_means,
)
from lit_attr.facts.roles import MEAN_ROLES, roles_of


def at(profile: dict, name: str, role: str, layer: int = 0) -> float | None:
    return profile[name][layer][MEAN_ROLES.index(role)]


def test_profile_averages_tokens_of_a_role_then_contrasts():
    # Two contrasts of one layer: prefix, subject tokens (2, 4) and last 10; prefix, subject token 8 and last 20.
    sums = ProfileSums([3], "mlp", "gradient")
    sums.add(np.array([[70.0, 2.0, 4.0, 10.0]]), ("prefix", "first subject", "last subject", "last"), (1, 3))
    sums.add(np.array([[90.0, 8.0, 20.0]]), ("prefix", "last subject", "last"), (1, 2))
    profile = sums.compute()
    counts = dict(zip(MEAN_ROLES, profile["contrasts"], strict=True))
    # (2 + 8) / 2: a subject of one token is first and last.
    assert (at(profile, "mean_score", "first subject"), counts["first subject"]) == (5.0, 2)
    assert (at(profile, "mean_score", "last subject"), counts["last subject"]) == (6.0, 2)
    assert (at(profile, "mean_score", "last"), counts["last"]) == (15.0, 2)
    # 10 and 20: standard deviation √50, over √2.
    assert at(profile, "standard_error", "last") == pytest.approx(5)
    # Position 0 is in no other row.
    assert (at(profile, "mean_score", "position 0"), counts["position 0"]) == (80.0, 2)
    assert (at(profile, "mean_score", "prefix"), counts["prefix"]) == (None, 0)
    assert at(profile, "standard_error", "further") is None
    assert (at(profile, "mean_score", "further"), counts["further"]) == (None, 0)
    assert (profile["layers"], profile["component"], profile["rule"]) == ([3], "mlp", "gradient")
    assert orjson.loads(orjson.dumps(profile)) == profile


def test_profile_counts_a_long_subject_once():
    sums = ProfileSums([0], "mlp", "gradient")
    roles = ("first subject", "middle subject", "middle subject", "last subject")
    sums.add(np.array([[0.0, 1.0, 3.0, 0.0]]), roles, (0, 4))
    profile = sums.compute()
    assert at(profile, "mean_score", "middle subject") == 2
    assert profile["contrasts"][MEAN_ROLES.index("middle subject")] == 1
    assert at(profile, "standard_error", "middle subject") is None


def test_a_subject_at_position_0_counts_without_its_first_token():
    sums = ProfileSums([0], "mlp", "gradient")
    sums.add(np.array([[5.0, 2.0, 7.0]]), ("first subject", "last subject", "last"), (0, 2))
    sums.add(np.array([[3.0, 9.0]]), ("last subject", "last"), (0, 1))
    profile = sums.compute()
    assert profile["roles"] == list(MEAN_ROLES)
    #                                 position 0, prefix, first, middle, last subject, subsequent, further, last
    assert profile["contrasts"] == profile["facts"] == [2, 0, 0, 0, 1, 0, 0, 2]
    assert profile["mean_score"] == [[4.0, None, None, None, 2.0, None, None, 8.0]]


def test_standard_errors_are_clustered_by_fact():
    """Three facts with 3, 1 and 2 contrasts, of which the last role has 1 + 2 + 3, 4 and 8 + 0."""
    sums = ProfileSums([0], "mlp", "gradient")
    last = np.array([role == "last" for role in MEAN_ROLES])
    for total, count in ((6.0, 3), (4.0, 1), (8.0, 2)):
        sums.add_fact(total * last[None].astype(float), count * last)
    # A fact without the role counts for nothing.
    sums.add_fact(np.zeros((1, 8)), np.zeros(8, dtype=int))
    profile = sums.compute()
    assert (at(profile, "mean_score", "last"), profile["contrasts"][-1], profile["facts"][-1]) == (3.0, 6, 3)
    # Mean 18 / 6 = 3; 6 - 3 * 3 = -3, 4 - 3 = 1, 8 - 3 * 2 = 2: √(3/2 · (9 + 1 + 4)) / 6.
    assert at(profile, "standard_error", "last") == pytest.approx(21**0.5 / 6)
    assert profile["standard_error"][0][:-1] == [None] * 7


def test_one_fact_has_no_standard_error_however_many_contrasts_it_has():
    sums = ProfileSums([0], "mlp", "gradient")
    sums.add_fact(np.full((1, 8), 6.0), np.full(8, 3))
    profile = sums.compute()
    assert profile["mean_score"] == [[2.0] * 8]
    assert profile["standard_error"] == [[None] * 8]


def drawn(seed: int, count: int) -> list[tuple[np.ndarray, tuple[str, ...], tuple[int, int]]]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(generator.integers(3, 9))
        start = int(generator.integers(0, length - 1))
        span = start, int(generator.integers(start + 1, length))
        scores_LT = generator.standard_normal((2, length)) * 10.0 ** generator.integers(-6, 6)
        found.append((scores_LT, roles_of(length, span), span))
    return found


def test_profile_equals_a_loop():
    contrasts = drawn(0, 40)
    sums = ProfileSums([0, 1], "mlp", "gradient")
    for contrast in contrasts:
        sums.add(*contrast)
    profile = sums.compute()
    for role in MEAN_ROLES:
        for layer in range(2):
            means = []
            for scores_LT, roles, (start, _) in contrasts:
                has = [place for place, each in enumerate(roles) if each == role and place > 0]
                if role == "first subject":
                    has = [start] if start else []
                if role == "position 0":
                    has = [0]
                if has:
                    means.append(np.mean(scores_LT[layer, has]))
            assert profile["contrasts"][MEAN_ROLES.index(role)] == len(means)
            assert at(profile, "mean_score", role, layer) == pytest.approx(np.mean(means))
            # Of values of so many sizes, the sum of squares keeps as many digits as the largest needs.
            expected = np.std(means, ddof=1) / np.sqrt(len(means))
            assert at(profile, "standard_error", role, layer) == pytest.approx(expected)


def test_the_order_of_contrasts_does_not_matter_to_the_last_bit():
    contrasts = drawn(1, 500)
    found = []
    for order in (contrasts, contrasts[::-1], sorted(contrasts, key=lambda contrast: contrast[0][0, 0])):
        sums = ProfileSums([0, 1], "mlp", "gradient")
        for contrast in order:
            sums.add(*contrast)
        found.append(sums.compute())
    assert found[0] == found[1] == found[2]


def test_sums_add_up_across_processes():
    contrasts = drawn(2, 20)
    whole, shared, *parts = (ProfileSums([0, 1], "mlp", "gradient") for _ in range(4))
    for place, contrast in enumerate(contrasts):
        whole.add(*contrast)
        parts[place % 2].add(*contrast)
    shared.sums_3LR = parts[0].sums_3LR + parts[1].sums_3LR
    shared.counts_3R = parts[0].counts_3R + parts[1].counts_3R
    ours, theirs = shared.compute(), whole.compute()
    assert (ours["contrasts"], ours["facts"]) == (theirs["contrasts"], theirs["facts"])
    for name in ("mean_score", "standard_error"):
        for row, expected in zip(ours[name], theirs[name], strict=True):
            assert row == pytest.approx(expected)


def contrast(
    fact: int, scores: list[float], effects: list[float], step: int = 0, is_sampled: bool = True
) -> CheckedMeans:
    """A contrast of one layer: position 0, a subject of two tokens, the last token."""
    roles, span = ("prefix", "first subject", "last subject", "last"), (1, 3)
    means, has_role_R = contrast_means(np.array([scores]), roles, span)
    of_scores = ContrastMeans(fact, step, "P1", True, means, has_role_R)
    return CheckedMeans(of_scores, contrast_means(np.array([effects]), roles, span)[0], is_sampled)


def drawn_contrasts(count: int) -> list[CheckedMeans]:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((count, 4))
    effects = 0.5 * scores + 0.2 * generator.standard_normal((count, 4)) + 1
    return [contrast(fact, scores[fact].tolist(), effects[fact].tolist()) for fact in range(count)]


def profile_of(contrasts: list[CheckedMeans], rule: str = "gradient") -> EffectProfile:
    profile = EffectProfile([0], "mlp", rule)
    for each in contrasts:
        profile.add_fact([each.contrast])
    return profile


def test_signs_do_not_cancel_in_a_magnitude():
    roles, span = ("prefix", "first subject", "middle subject", "middle subject", "last subject"), (1, 5)
    (signed_LR, magnitude_LR), has_role_R = contrast_means(np.array([[1.0, 2, -3, 5, -7]]), roles, span)
    middle = MEAN_ROLES.index("middle subject")
    assert (signed_LR[0, middle], magnitude_LR[0, middle]) == (1, 4)
    assert magnitude_LR[0, MEAN_ROLES.index("last subject")] == 7
    assert not has_role_R[MEAN_ROLES.index("last")] and has_role_R[middle]


def test_mean_effects_stand_beside_mean_scores():
    contrasts = drawn_contrasts(20)
    profile = profile_of(contrasts).compute(contrasts[:10])
    assert profile["sampled"] == [10, 0, 10, 0, 10, 0, 0, 10]
    scores, effects = (
        np.stack([part(each) for each in contrasts])
        for part in (lambda each: each.contrast.scores_KLR, lambda each: each.effects_KLR)
    )
    counts = np.full((20, 8), [1, 0, 1, 0, 1, 0, 0, 1])
    nothing = Sums(np.zeros((2, 1, 8)), np.zeros(8, dtype=int))
    scored = Sums(scores.sum(0), counts.sum(0))
    expected = mean_effects(scored, Sample(scores[:10], effects[:10], counts[:10]), nothing)
    for kind, names in enumerate(KINDS):
        for name, values_KLR in zip(names, expected, strict=True):
            assert at(profile, name, "last") == pytest.approx(max(values_KLR[kind, 0, -1], 0 if kind else -9))
            assert at(profile, name, "further") is None
    assert profile["mean_score"] == profile_of(contrasts).scores.compute()["mean_score"]
    assert orjson.loads(orjson.dumps(profile)) == profile


def test_without_exact_effects_there_are_no_mean_effects():
    profile = profile_of(drawn_contrasts(20)).compute()
    assert profile["sampled"] == [0] * 8
    assert {name: profile[name] for names in KINDS for name in names} == {
        name: [[None] * 8] for names in KINDS for name in names
    }


def test_magnitudes_do_not_fall_below_0():
    contrasts = [contrast(fact, [0.0] * 4, [0, 0, 0, 1.0 if fact == 3 else 0.0]) for fact in range(40)]
    profile = profile_of(contrasts).compute(contrasts[:10])
    assert at(profile, "interval_low", "last") < 0
    assert at(profile, "magnitude_low", "last") == 0
    assert at(profile, "mean_magnitude", "last") == pytest.approx(0.1)


def test_scores_of_the_rule_exact_are_the_effects():
    profile = profile_of(drawn_contrasts(5), "exact").compute()
    assert profile["mean_effect"] == profile["interval_low"] == profile["interval_high"] == profile["mean_score"]
    assert profile["sampled"] == profile["facts"]
    assert at(profile, "mean_magnitude", "last") >= abs(at(profile, "mean_effect", "last"))


def test_a_pilot_stands_for_itself():
    """Of 20 facts 4 are a pilot of effect 9, and 10 of the others are sampled."""
    contrasts = drawn_contrasts(16)
    pilot = [contrast(fact, [9.0] * 4, [9.0] * 4, is_sampled=False) for fact in range(16, 20)]
    alone = profile_of(contrasts).compute(contrasts[:10])
    profile = profile_of([*contrasts, *pilot]).compute([*contrasts[:10], *pilot])
    for name in ("mean_effect", "interval_low", "interval_high", "mean_magnitude"):
        assert at(profile, name, "last") == pytest.approx(0.8 * at(alone, name, "last") + 0.2 * 9)
    assert profile["sampled"][-1] == 14
    # A pilot is not a sample of the others.
    assert at(profile_of([*contrasts, *pilot]).compute([*contrasts[:3], *pilot]), "mean_effect", "last") is None


def test_sampled_contrasts_of_one_fact_are_one_cluster():
    contrasts = [contrast(fact // 2, [1.0] * 4, [float(fact)] * 4, fact % 2) for fact in range(14)]
    profile = EffectProfile([0], "mlp", "gradient")
    for first, second in zip(contrasts[::2], contrasts[1::2], strict=True):
        profile.add_fact([first.contrast, second.contrast])
    profile.add_fact([contrast(99, [1.0] * 4, [1.0] * 4).contrast])
    found = profile.compute(contrasts)
    # 14 contrasts, but 7 facts.
    assert (found["sampled"][-1], at(found, "mean_effect", "last")) == (7, None)


def test_answers_are_counted():
    answers = AnswerCounts()
    for logit_diff, rank_true in ((1.5, 0), (-0.5, 3), (0.0, 0), (2.0, 1)):
        answers.add(logit_diff, rank_true)
    assert (answers.total, answers.preferred, answers.known) == (4, 2, 2)
    assert answers.compute() == {"contrasts": 4, "contrast_accuracy": 0.5, "known": 2, "known_share": 0.5}
    assert AnswerCounts().compute() == {
        "contrasts": 0,
        "contrast_accuracy": None,
        "known": 0,
        "known_share": None,
    }
