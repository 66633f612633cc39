"""Token roles: where a token stands relative to the subject of its prompt.

Axes: R roles, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Role = Literal["prefix", "first subject", "middle subject", "last subject", "first subsequent", "further", "last"]
ROLES: tuple[Role, ...] = get_args(Role)

POSITION_0 = "position 0"
# The rows of role × layer means. The token at position 0 is most often an attention sink, whatever its role.
MEAN_ROLES: tuple[str, ...] = (POSITION_0, *ROLES)

_ROLE_INDEX: dict[str, int] = {role: index for index, role in enumerate(ROLES)}


def roles_of(length: int, subject_span: tuple[int, int]) -> tuple[Role, ...]:
    """Labels each of `length` tokens with its role, as in the causal traces of Meng et al. (2022, section 2.2).

    Where one token could have two roles, the subject's roles take precedence over `last`, and `last` over
    `first subsequent`.

    Args:
        length: The number of tokens.
        subject_span: The subject's first token and the token after its last.
    """
    start, stop = subject_span

    def role_at(position: int) -> Role:
        if position < start:
            return "prefix"
        if position < stop:
            if position == stop - 1:
                return "last subject"
            return "first subject" if position == start else "middle subject"
        if position == length - 1:
            return "last"
        return "first subsequent" if position == stop else "further"

    return tuple(role_at(position) for position in range(length))


def role_mask_RT(roles: Sequence[str], subject_span: Sequence[int]) -> NDArray[np.bool_]:
    """Marks which tokens of a contrast count for which role.

    The token of a one-token subject counts as the subject's first and as its last.

    Args:
        roles: The label of each token, see :func:`roles_of`.
        subject_span: The subject's first token and the token after its last.

    Returns:
        bool, axes role (in the order of `ROLES`) × token.
    """
    mask_RT = np.zeros((len(ROLES), len(roles)), dtype=np.bool_)
    mask_RT[[_ROLE_INDEX[role] for role in roles], np.arange(len(roles))] = True
    mask_RT[_ROLE_INDEX["first subject"], subject_span[0]] = True
    return mask_RT


def mean_mask_RT(roles: Sequence[str], subject_span: Sequence[int]) -> NDArray[np.bool_]:
    """Marks which tokens of a contrast count in which row of role × layer means.

    The token at position 0 counts in the row of position 0 alone, every other token as in :func:`role_mask_RT`.

    Args:
        roles: The label of each token, see :func:`roles_of`.
        subject_span: The subject's first token and the token after its last.

    Returns:
        bool, axes role (in the order of `MEAN_ROLES`) × token.
    """
    mask_RT = np.zeros((len(MEAN_ROLES), len(roles)), dtype=np.bool_)
    mask_RT[0, 0] = True
    mask_RT[1:, 1:] = role_mask_RT(roles, subject_span)[:, 1:]
    return mask_RT
