"""Labels of tokens, and which tokens count for which role."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.facts.roles import ROLES, role_mask_RT, roles_of


@pytest.mark.parametrize(
    ("length", "span", "roles"),
    [
        (7, (1, 4), "prefix|first subject|middle subject|last subject|first subsequent|further|last"),
        (2, (0, 1), "last subject|last"),
        (3, (1, 3), "prefix|first subject|last subject"),
        (4, (0, 2), "first subject|last subject|first subsequent|last"),
    ],
)
def test_every_position_has_its_role(length: int, span: tuple[int, int], roles: str):
    assert "|".join(roles_of(length, span)) == roles


def test_a_one_token_subject_counts_as_first_and_as_last():
    mask_RT = role_mask_RT(("prefix", "last subject", "last"), (1, 2))
    row = ROLES.index
    assert mask_RT[row("first subject")].tolist() == [False, True, False]
    assert mask_RT[row("last subject")].tolist() == [False, True, False]
    assert mask_RT[row("last")].tolist() == [False, False, True]
    assert mask_RT.sum() == 4
    assert mask_RT.dtype == np.bool_


def test_every_token_of_a_longer_subject_counts_once():
    # One token of each role, in the order of `ROLES`.
    assert np.array_equal(role_mask_RT(roles_of(7, (1, 4)), [1, 4]), np.eye(7, dtype=bool))
