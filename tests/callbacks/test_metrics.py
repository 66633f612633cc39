"""The metrics, on numbers added up by hand."""

from __future__ import annotations

import pytest
import torch

from lit_attr.callbacks.metrics import AnswerCounts, RoleLayerProfile
from lit_attr.facts.contrasts import ROLES, role_mask_BRT


def test_profile_averages_tokens_of_a_role_then_contrasts():
    # Two contrasts of one layer: subject tokens (2, 4) and last 10; subject token 8 and last 20.
    roles = [("first subject", "last subject", "last"), ("last subject", "last")]
    mask_BRT = role_mask_BRT(roles, [(0, 2), (0, 1)])
    profile = RoleLayerProfile(1)
    profile.update(torch.tensor([[[2.0, 4.0, 10.0]], [[8.0, 20.0, 99.0]]]), mask_BRT)
    mean_LR, error_LR, count_R = profile.compute()
    found = {role: (mean_LR[0, place].item(), count_R[place].item()) for place, role in enumerate(ROLES)}
    assert found["first subject"] == (5.0, 2)  # (2 + 8) / 2: a subject of one token is first and last
    assert found["last subject"] == (6.0, 2)
    assert found["last"] == (15.0, 2)
    # 10 and 20: standard deviation √50, over √2.
    assert error_LR[0, ROLES.index("last")].item() == pytest.approx(5)
    assert error_LR[0, ROLES.index("further")].isnan()
    assert found["further"][1] == 0
    assert mean_LR[0, ROLES.index("further")].isnan()


def test_profile_counts_a_long_subject_once():
    roles = [("first subject", "middle subject", "middle subject", "last subject")]
    profile = RoleLayerProfile(1)
    profile.update(torch.tensor([[[0.0, 1.0, 3.0, 0.0]]]), role_mask_BRT(roles, [(0, 4)]))
    mean_LR, _, count_R = profile.compute()
    assert mean_LR[0, ROLES.index("middle subject")] == 2
    assert count_R[ROLES.index("middle subject")] == 1


def test_answers_are_counted():
    answers = AnswerCounts()
    answers.update(torch.tensor([1.5, -0.5, 0.0]), torch.tensor([0, 3, 0]))
    answers.update(torch.tensor([2.0]), torch.tensor([1]))
    assert answers.compute() == (4, 2, 2)
