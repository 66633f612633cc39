"""Means by role and layer, and counts of answers, on numbers added up by hand."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from lit_attr.evaluation.answers import AnswerCounts
from lit_attr.evaluation.profile import ProfileSums
from lit_attr.facts.roles import ROLES, roles_of


def at(profile: dict, name: str, role: str, layer: int = 0) -> float | None:
    return profile[name][layer][ROLES.index(role)]


def test_profile_averages_tokens_of_a_role_then_contrasts():
    # Two contrasts of one layer: subject tokens (2, 4) and last 10; subject token 8 and last 20.
    sums = ProfileSums([3], "mlp", "gradient")
    sums.add(np.array([[2.0, 4.0, 10.0]]), ("first subject", "last subject", "last"), (0, 2))
    sums.add(np.array([[8.0, 20.0]]), ("last subject", "last"), (0, 1))
    profile = sums.compute()
    counts = dict(zip(ROLES, profile["contrasts"], strict=True))
    # (2 + 8) / 2: a subject of one token is first and last.
    assert (at(profile, "mean_score", "first subject"), counts["first subject"]) == (5.0, 2)
    assert (at(profile, "mean_score", "last subject"), counts["last subject"]) == (6.0, 2)
    assert (at(profile, "mean_score", "last"), counts["last"]) == (15.0, 2)
    # 10 and 20: standard deviation √50, over √2.
    assert at(profile, "standard_error", "last") == pytest.approx(5)
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
    assert profile["contrasts"][ROLES.index("middle subject")] == 1
    assert at(profile, "standard_error", "middle subject") is None


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
    for role in ROLES:
        for layer in range(2):
            means = []
            for scores_LT, roles, (start, _) in contrasts:
                has = [place for place, each in enumerate(roles) if each == role]
                if role == "first subject":
                    has = [start]
                if has:
                    means.append(np.mean(scores_LT[layer, has]))
            assert profile["contrasts"][ROLES.index(role)] == len(means)
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
    shared.total_LR = parts[0].total_LR + parts[1].total_LR
    shared.square_LR = parts[0].square_LR + parts[1].square_LR
    shared.count_R = parts[0].count_R + parts[1].count_R
    ours, theirs = shared.compute(), whole.compute()
    assert ours["contrasts"] == theirs["contrasts"]
    for name in ("mean_score", "standard_error"):
        for row, expected in zip(ours[name], theirs[name], strict=True):
            assert row == pytest.approx(expected)


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
