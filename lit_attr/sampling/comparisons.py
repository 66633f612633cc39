"""The run's sample: the contrasts whose exact effects are computed beside their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel

from lit_attr.attribution.comparison import ExactEffects, compare_exactly
from lit_attr.attribution.scoring import Scoring
from lit_attr.errors import SharedModelError, arguments_of, one_line, warn_about
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location
from lit_attr.records.state import RunState

# Computes the exact effects of a contrast, given its place in the run's random order; None where that fails.
Compare = Callable[[Contrast, "int | None"], "ExactEffects | None"]


class Scorer(NamedTuple):
    """What scores are computed with.

    Attributes:
        model: The language model.
        location: The modules whose outputs are scored.
        scoring: How.
    """

    model: PreTrainedModel
    location: Location
    scoring: Scoring


def compare_or_warn(scorer: Scorer, contrast: Contrast, place: int | None) -> ExactEffects | None:
    """The exact effects of a contrast; None, with a warning, where they cannot be computed."""
    try:
        return compare_exactly(*scorer[:2], contrast, scorer.scoring, place=place)
    except SharedModelError:
        raise
    except Exception as error:  # of any kind: the scores are there, and the run continues without comparison
        with arguments_of("model"):
            reason = f"this model's exact effects cannot be computed ({one_line(error)}); 0 leaves them out"
            warn_about("verify", reason)
        return None


def compare_or_replace(
    contrast: Contrast, place: int | None, compare: Compare, state: RunState | None
) -> tuple[ExactEffects, ...]:
    """Exact effects of a contrast of the sample; where they are not finite, those of the next in order as well.

    Args:
        contrast: The contrast.
        place: Its place in the run's random order.
        compare: Computes exact effects.
        state: The state of the run, which has the contrasts that may replace others; None replaces none.

    Returns:
        The exact effects of the contrast and of its replacements, the refused ones among them.
    """
    exact = []
    candidate: tuple[int | None, Contrast] | None = (place, contrast)
    while candidate is not None:
        effects = compare(candidate[1], candidate[0])
        if effects is None:
            break
        exact.append(effects)
        candidate = state.next_spare() if effects.refused is not None and state is not None else None
    return tuple(exact)


class FirstSeen:
    """The sample of a loader that knows no random order: the first contrasts that each process sees.

    Exact effects of earlier runs count, so that a loader that shuffles does not add others in each run.

    Args:
        size: How many contrasts the sample of the whole run has.
        processes: How many processes the run has.
    """

    def __init__(self, size: int, processes: int = 1) -> None:
        self._size, self._processes = size, processes
        self._found = 0

    def compare(
        self, contrasts: Sequence[Contrast], compare: Compare, state: RunState | None
    ) -> tuple[ExactEffects, ...]:
        """Exact effects of the contrasts of a batch that are in the sample and have none yet.

        Args:
            contrasts: The contrasts of the batch.
            compare: Computes exact effects.
            state: The state of the run, which has the exact effects of earlier runs.
        """
        exact = []
        state = state or RunState()
        missing = self._size - sum(state.exact.values())
        for contrast in contrasts:
            if self._found * self._processes >= missing:
                break
            if not contrast.is_contrastive or contrast.key in state.refused or contrast.key in state.exact:
                continue
            effects = compare(contrast, None)
            if effects is not None:
                exact.append(effects)
                self._found += effects.refused is None
        return tuple(exact)
