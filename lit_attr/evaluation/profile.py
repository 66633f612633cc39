"""Mean scores of each layer at each token role.

Axes: L layers, R roles (in the order of `ROLES`), T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.roles import ROLES, role_mask_RT


class ProfileSums:
    """Sums behind the mean score of each layer at each role.

    They are averaged as Meng et al. (2022, figure 2) average their causal traces: the tokens of one contrast that
    share a role first, so that a long subject counts once. The arrays `total_LR`, `square_LR` and `count_R` can be
    added up across processes and set again. Sums carry their rounding errors along, so that they do not depend on
    the order of the contrasts.

    Args:
        layers: The layers of the scores, in their order.
        component: The component that the scores are of.
        rule: The rule that computed them.
    """

    def __init__(self, layers: Sequence[int], component: str, rule: str) -> None:
        self.layers = tuple(layers)
        self.component = component
        self.rule = rule
        shape = len(self.layers), len(ROLES)
        # Of scores and of their squares: the sum, and what rounding has taken from it.
        self._sums_2LR, self._lost_2LR = np.zeros((2, *shape)), np.zeros((2, *shape))
        self.count_R: NDArray[np.int64] = np.zeros(len(ROLES), dtype=np.int64)

    @property
    def total_LR(self) -> NDArray[np.float64]:
        """The sum over contrasts of their mean scores at a role."""
        total_LR: NDArray[np.float64] = self._sums_2LR[0] + self._lost_2LR[0]
        return total_LR

    @total_LR.setter
    def total_LR(self, values_LR: NDArray[np.float64]) -> None:
        self._sums_2LR[0], self._lost_2LR[0] = values_LR, 0

    @property
    def square_LR(self) -> NDArray[np.float64]:
        """The sum over contrasts of the squares of their mean scores at a role."""
        square_LR: NDArray[np.float64] = self._sums_2LR[1] + self._lost_2LR[1]
        return square_LR

    @square_LR.setter
    def square_LR(self, values_LR: NDArray[np.float64]) -> None:
        self._sums_2LR[1], self._lost_2LR[1] = values_LR, 0

    def add(self, scores_LT: NDArray[Any], roles: Sequence[str], subject_span: Sequence[int]) -> None:
        """Adds a contrast.

        Args:
            scores_LT: Its scores in logits.
            roles: The role of each token.
            subject_span: The subject's first token, and the one after its last.
        """
        self.add_means(*role_means(scores_LT, roles, subject_span))

    def add_means(self, means_LR: NDArray[np.float64], has_role_R: NDArray[np.bool_]) -> None:
        """Adds a contrast by its mean scores, see :func:`role_means`."""
        added_2LR = np.stack([means_LR, means_LR * means_LR])
        # Knuth's two-sum: the rounding error of a sum of two numbers, exactly.
        sums_2LR = self._sums_2LR + added_2LR
        rounded_2LR = sums_2LR - self._sums_2LR
        self._lost_2LR += (self._sums_2LR - (sums_2LR - rounded_2LR)) + (added_2LR - rounded_2LR)
        self._sums_2LR = sums_2LR
        self.count_R += has_role_R

    def compute(self) -> dict[str, Any]:
        """The profile in JSON types.

        `contrasts` has the number of contrasts with each role, `mean_score` a row a layer with the mean at each
        role, None where no contrast has it; `standard_error` that of the mean, None where fewer than two have it.
        """
        total_LR, square_LR, count_R = self.total_LR, self.square_LR, self.count_R
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_LR = total_LR / count_R
            variance_LR = (square_LR / count_R - mean_LR**2).clip(min=0)
            error_LR = np.where(count_R > 1, np.sqrt(variance_LR / (count_R - 1)), np.nan)
        return {
            "component": self.component,
            "rule": self.rule,
            "layers": list(self.layers),
            "roles": list(ROLES),
            "contrasts": count_R.tolist(),
            "mean_score": _without_nan(mean_LR),
            "standard_error": _without_nan(error_LR),
        }


def role_means(
    scores_LT: NDArray[Any], roles: Sequence[str], subject_span: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A contrast's mean score of each layer at each role, 0 where no token has it, and which roles it has.

    Args:
        scores_LT: Its scores in logits.
        roles: The role of each token.
        subject_span: The subject's first token, and the one after its last.

    Returns:
        float64 [L, R] and bool [R].
    """
    mask_RT = role_mask_RT(roles, subject_span)
    tokens_R = mask_RT.sum(1)
    means_LR = scores_LT.astype(np.float64) @ mask_RT.T.astype(np.float64) / tokens_R.clip(min=1)
    return means_LR, tokens_R > 0


def _without_nan(values_LR: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values_LR.tolist()]
