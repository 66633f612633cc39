"""Mean scores of each layer at each token role.

Axes: L layers, R roles (in the order of `MEAN_ROLES`), T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_attr.facts.roles import MEAN_ROLES, mean_mask_RT


class ProfileSums:
    """Sums behind the mean score of each layer at each role.

    They are averaged as Meng et al. (2022, figure 2) average their causal traces: the tokens of one contrast that
    share a role first, so that a long subject counts once. Contrasts of one fact are not independent: the
    standard error is clustered by fact. The arrays `sums_3LR` and `counts_3R` can be added up across processes and
    set again. Sums carry their rounding errors along, so that they do not depend on the order of the facts.

    Args:
        layers: The layers of the scores, in their order.
        component: The component that the scores are of.
        rule: The rule that computed them.

    Attributes:
        counts_3R: For each role, the number of facts with it, and the sums over these facts of the number of their
            contrasts with it and of its square.
    """

    def __init__(self, layers: Sequence[int], component: str, rule: str) -> None:
        self.layers = tuple(layers)
        self.component = component
        self.rule = rule
        shape = 3, len(self.layers), len(MEAN_ROLES)
        # The sums, and what rounding has taken from them.
        self._sums_3LR, self._lost_3LR = np.zeros(shape), np.zeros(shape)
        self.counts_3R: NDArray[np.int64] = np.zeros((3, len(MEAN_ROLES)), dtype=np.int64)

    @property
    def sums_3LR(self) -> NDArray[np.float64]:
        """Sums over facts of the total at a role, of its square, and of total × number of contrasts."""
        sums_3LR: NDArray[np.float64] = self._sums_3LR + self._lost_3LR
        return sums_3LR

    @sums_3LR.setter
    def sums_3LR(self, values_3LR: NDArray[np.float64]) -> None:
        self._sums_3LR, self._lost_3LR = values_3LR, np.zeros_like(values_3LR)

    def add(self, scores_LT: NDArray[Any], roles: Sequence[str], subject_span: Sequence[int]) -> None:
        """Adds a fact of one contrast.

        Args:
            scores_LT: Its scores in logits.
            roles: The role of each token.
            subject_span: The subject's first token, and the one after its last.
        """
        self.add_fact(*role_means(scores_LT, roles, subject_span))

    def add_fact(self, total_LR: NDArray[np.float64], count_R: NDArray[np.integer | np.bool_]) -> None:
        """Adds a fact.

        Args:
            total_LR: The sum of its contrasts' mean scores, see :func:`role_means`.
            count_R: How many of its contrasts have each role.
        """
        count_R = count_R.astype(np.int64)
        added_3LR = np.stack([total_LR, total_LR * total_LR, total_LR * count_R])
        # Knuth's two-sum: the rounding error of a sum of two numbers, exactly.
        sums_3LR = self._sums_3LR + added_3LR
        rounded_3LR = sums_3LR - self._sums_3LR
        self._lost_3LR += (self._sums_3LR - (sums_3LR - rounded_3LR)) + (added_3LR - rounded_3LR)
        self._sums_3LR = sums_3LR
        self.counts_3R += np.stack([count_R > 0, count_R, count_R * count_R])

    def compute(self) -> dict[str, Any]:
        """The profile in JSON types.

        `facts` and `contrasts` have the number of facts and of contrasts with each role, `mean_score` for each
        layer the mean over contrasts at each role, None where none has it. `standard_error` is that of the mean,
        None where fewer than two facts have the role. It is clustered by fact, as the error of a ratio of totals
        over clusters of unequal sizes (Cochran, 1977, chapter 9A; Liang & Zeger, 1986). Where each fact has one
        contrast, it is the standard deviation over the square root of their number.
        """
        total_LR, square_LR, product_LR = self.sums_3LR
        facts_R, contrasts_R, squares_R = self.counts_3R
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_LR = total_LR / contrasts_R
            # The sum over facts of (total − mean · contrasts)².
            deviations_LR = (square_LR - 2 * mean_LR * product_LR + mean_LR**2 * squares_R).clip(min=0)
            error_LR = np.sqrt(facts_R / (facts_R - 1) * deviations_LR) / contrasts_R
        return {
            "component": self.component,
            "rule": self.rule,
            "layers": list(self.layers),
            "roles": list(MEAN_ROLES),
            "facts": facts_R.tolist(),
            "contrasts": contrasts_R.tolist(),
            "mean_score": _without_nan(mean_LR),
            "standard_error": _without_nan(np.where(facts_R > 1, error_LR, np.nan)),
        }


def role_means(
    scores_LT: NDArray[Any], roles: Sequence[str], subject_span: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A contrast's mean score of each layer at each role, 0 where no token has it, and which roles it has.

    The token at position 0 is in the row of position 0 alone.

    Args:
        scores_LT: Its scores in logits.
        roles: The role of each token.
        subject_span: The subject's first token, and the one after its last.

    Returns:
        float64 [L, R] and bool [R].
    """
    mask_RT = mean_mask_RT(roles, subject_span)
    tokens_R = mask_RT.sum(1)
    means_LR = scores_LT.astype(np.float64) @ mask_RT.T.astype(np.float64) / tokens_R.clip(min=1)
    return means_LR, tokens_R > 0


def _without_nan(values_LR: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values_LR.tolist()]
