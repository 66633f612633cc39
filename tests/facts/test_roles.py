"""Labels of tokens, and which tokens count for which role."""

from __future__ import annotations

import numpy as np
import pytest

from lit_attr.facts.roles import MEAN_ROLES, POSITION_0, ROLES, mean_mask_RT, role_mask_RT, roles_of


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


def test_means_have_a_row_for_position_0_above_the_roles():
    assert ("position 0", *ROLES) == MEAN_ROLES
    assert MEAN_ROLES[0] == POSITION_0


@pytest.mark.parametrize(
    ("length", "span", "rows"),
    [
        # One token of each role; the one at position 0 would be the prefix.
        (
            7,
            (1, 4),
            {
                "first subject": [1],
                "middle subject": [2],
                "last subject": [3],
                "first subsequent": [4],
                "further": [5],
                "last": [6],
            },
        ),
        (
            6,
            (2, 4),
            {"prefix": [1], "first subject": [2], "last subject": [3], "first subsequent": [4], "last": [5]},
        ),
        # The first token of the subject at position 0.
        (5, (0, 3), {"middle subject": [1], "last subject": [2], "first subsequent": [3], "last": [4]}),
        # A subject of one token counts as first and last, unless it is at position 0.
        (3, (1, 2), {"first subject": [1], "last subject": [1], "last": [2]}),
        (3, (0, 1), {"first subsequent": [1], "last": [2]}),
        (1, (0, 1), {}),
    ],
)
def test_the_token_at_position_0_counts_in_no_other_row(
    length: int, span: tuple[int, int], rows: dict[str, list[int]]
):
    mask_RT = mean_mask_RT(roles_of(length, span), span)
    assert mask_RT.shape == (8, length)
    assert mask_RT.dtype == np.bool_
    found = {role: np.flatnonzero(row).tolist() for role, row in zip(MEAN_ROLES, mask_RT, strict=True)}
    assert {role: tokens for role, tokens in found.items() if tokens} == {"position 0": [0], **rows}
