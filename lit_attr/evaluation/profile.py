"""Mean scores and mean exact effects of each layer at each token role.

Axes: K kinds of means (signed, magnitude), L layers, R roles (in the order of `MEAN_ROLES`), T tokens of one
contrast, F facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.evaluation.effects import Counts, Sample, Sums, Values, mean_effects
from lit_attr.facts.roles import MEAN_ROLES, mean_mask_RT

# The names in a profile of each kind of mean effects and of the ends of its interval.
KINDS = (
    ("mean_effect", "interval_low", "interval_high"),
    ("mean_magnitude", "magnitude_low", "magnitude_high"),
)


class ContrastMeans(NamedTuple):
    """A contrast's means over the tokens of each role.

    Attributes:
        fact: The id of its fact.
        step: Its step.
        relation: The id of its relation, or an empty text.
        is_known: Whether the true token is the most likely one.
        scores_KLR: The means of its scores, and of their magnitudes.
        has_role_R: Which roles it has.
    """

    fact: int | str
    step: int
    relation: str
    is_known: bool
    scores_KLR: Values
    has_role_R: NDArray[np.bool_]


class CheckedMeans(NamedTuple):
    """The means of a contrast that has exact effects.

    Attributes:
        contrast: Those of its scores.
        effects_KLR: Those of its exact effects, and of their magnitudes.
        is_sampled: Whether it is in the random sample. Otherwise it stands for itself alone: the pilot of an
            adaptive run.
    """

    contrast: ContrastMeans
    effects_KLR: Values
    is_sampled: bool


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


class EffectProfile:
    """Means of scores over all facts of a group, and of exact effects, from those of a random sample.

    The magnitude of a role in a contrast is the mean of |score| or |effect| over its tokens, so that signs cancel
    neither within a contrast nor between contrasts.

    Args:
        layers: The layers of the scores, in their order.
        component: The component that the scores are of.
        rule: The rule that computed them. The scores of the rule `exact` are the exact effects.
    """

    def __init__(self, layers: Sequence[int], component: str, rule: str) -> None:
        self.scores, self._magnitudes = (ProfileSums(layers, component, rule) for _ in KINDS)

    def add_fact(self, contrasts: Sequence[ContrastMeans]) -> None:
        """Adds a fact, with all of its contrasts."""
        count_R: Counts = np.sum([each.has_role_R for each in contrasts], axis=0, dtype=np.int64)
        totals_KLR: Values = np.sum([each.scores_KLR for each in contrasts], axis=0)
        for sums, total_LR in zip((self.scores, self._magnitudes), totals_KLR, strict=True):
            sums.add_fact(total_LR, count_R)

    def compute(self, checked: Sequence[CheckedMeans] = ()) -> dict[str, Any]:
        """The profile in JSON types: that of the scores, with mean effects beside the mean scores.

        `mean_effect`, from `interval_low` to `interval_high`, is the mean exact effect over the contrasts with its
        95% confidence interval, and `mean_magnitude`, from `magnitude_low` to `magnitude_high`, that of the
        magnitudes, see :func:`mean_effects`. They are None where too few sampled facts have the role. `sampled`
        has the number of facts with exact effects that have it. Of the rule `exact` all have: the intervals then
        have no width.

        Args:
            checked: Those of the contrasts that have exact effects, in an order that does not depend on files.
        """
        everything = Sums(
            np.stack([sums.sums_3LR[0] for sums in (self.scores, self._magnitudes)]), self.scores.counts_3R[1]
        )
        nothing = Sums(np.zeros_like(everything.totals_KLR), np.zeros_like(everything.counts_R))
        if self.scores.rule == "exact":
            sampled_R = self.scores.counts_3R[0]
            found = mean_effects(nothing, _sample_of([], everything), everything)
        else:
            pilot = _sample_of([each for each in checked if not each.is_sampled], everything)
            sample = _sample_of([each for each in checked if each.is_sampled], everything)
            sampled_R = (_sample_of(checked, everything).counts_FR > 0).sum(0)
            scored = Sums(
                everything.totals_KLR - pilot.scores_FKLR.sum(0), everything.counts_R - pilot.counts_FR.sum(0)
            )
            found = mean_effects(scored, sample, Sums(pilot.effects_FKLR.sum(0), pilot.counts_FR.sum(0)))
        # A magnitude is not below 0.
        signed, magnitude = (list(part) for part in zip(*found, strict=True))
        magnitude = [values_LR.clip(min=0) for values_LR in magnitude]
        return {
            **self.scores.compute(),
            **{
                name: _without_nan(values_LR)
                for names, values in zip(KINDS, (signed, magnitude), strict=True)
                for name, values_LR in zip(names, values, strict=True)
            },
            "sampled": sampled_R.tolist(),
        }


def contrast_means(
    values_LT: NDArray[Any], roles: Sequence[str], subject_span: Sequence[int]
) -> tuple[Values, NDArray[np.bool_]]:
    """The means of a contrast's values and of their magnitudes, as :func:`role_means` takes them.

    Returns:
        float64 [K, L, R] and bool [R].
    """
    means_LR, has_role_R = role_means(np.concatenate([values_LT, np.abs(values_LT)]), roles, subject_span)
    return means_LR.reshape(len(KINDS), *values_LT.shape[:1], -1), has_role_R


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
    mask_TR, tokens_R = _mask_TR(tuple(roles), tuple(subject_span))
    means_LR = scores_LT.astype(np.float64) @ mask_TR / tokens_R.clip(min=1)
    return means_LR, tokens_R > 0


# Prompts of one template have the same roles, so that the contrasts of a batch have few masks.
@lru_cache(maxsize=512)
def _mask_TR(roles: tuple[str, ...], subject_span: tuple[int, ...]) -> tuple[Values, NDArray[np.int64]]:
    """Which tokens have which role, as numbers, and how many have it."""
    mask_RT = mean_mask_RT(roles, subject_span)
    return mask_RT.T.astype(np.float64), mask_RT.sum(1)


def _without_nan(values_LR: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values_LR.tolist()]


def _sample_of(checked: Sequence[CheckedMeans], everything: Sums) -> Sample:
    """The sums over the contrasts of each fact; `everything` has their shape."""
    places: dict[int | str, int] = {}
    for each in checked:
        places.setdefault(each.contrast.fact, len(places))
    scores_FKLR, effects_FKLR = (np.zeros((len(places), *everything.totals_KLR.shape)) for _ in range(2))
    counts_FR: Counts = np.zeros((len(places), len(everything.counts_R)), dtype=np.int64)
    for each in checked:
        place = places[each.contrast.fact]
        scores_FKLR[place] += each.contrast.scores_KLR
        effects_FKLR[place] += each.effects_KLR
        counts_FR[place] += each.contrast.has_role_R
    return Sample(scores_FKLR, effects_FKLR, counts_FR)
