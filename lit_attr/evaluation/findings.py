"""What the records of a run show beside its summary: relations, the strongest facts, failures, facts to draw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from lit_attr.evaluation.profile import CheckedMeans, ContrastMeans, EffectProfile, ProfileSums
from lit_attr.facts.contrasts import order_key
from lit_attr.records.reading import record_of
from lit_attr.records.schema import BatchRecord, Example

LARGEST_RELATIONS = 6
LISTED = 10

Record = dict[str, Any]


class Points(NamedTuple):
    """Compared cells, for a scatter plot.

    Attributes:
        scores_N: Scores in logits.
        effects_N: Exact effects in logits.
        layers_N: The layer of each cell.
    """

    scores_N: NDArray[np.float64]
    effects_N: NDArray[np.float64]
    layers_N: NDArray[np.int64]


class ComponentViews(NamedTuple):
    """What the pictures of one component show beside its figures in the summary.

    Attributes:
        relations: The profiles of the largest relations, by relation.
        points: Cells whose scores are compared with exact effects; None where there are none.
    """

    relations: dict[str, dict[str, Any]]
    points: Points | None


class RunFindings(NamedTuple):
    """What `summarise` finds in a run. Contrasts are records as `load_attributions` yields them.

    Attributes:
        summary: The run's summary in JSON types.
        spread: The contrasts that come first in the run's random order.
        asked_for: The contrasts of the facts asked for.
        not_found: The ids asked for that no contrast has.
        largest: The contrasts with the largest |logit difference|, the largest first.
        strongest: The contrasts with the largest logit differences, the largest first.
        failures: The contrasts where the false answer is preferred, the clearest first.
        components: What pictures show of each component, the one named first at the beginning.
    """

    summary: dict[str, Any]
    spread: list[Record]
    asked_for: list[Record]
    not_found: list[int | str]
    largest: list[Record]
    strongest: list[Record]
    failures: list[Record]
    components: dict[str, ComponentViews]


def key_order(contrast_id: int | str, step: int) -> tuple[bool, int | str, int]:
    """Sorts contrasts by id and step, numbers before texts."""
    return isinstance(contrast_id, str), contrast_id, step


class Chosen:
    """Picks contrasts while the records of a run are read once. Which are picked does not depend on their order.

    Args:
        ids: The facts asked for.
        spread: How many contrasts are picked by the run's random order.
        largest: How many contrasts are picked by their |logit difference|.
        seed: The seed of the run's random order.
    """

    def __init__(self, ids: Collection[int | str], *, spread: int, largest: int, seed: int) -> None:
        self._ids = set(ids)
        self._seed = seed
        self.spread, self.largest = _First(spread), _First(largest)
        self.strongest, self.failures = _First(LISTED), _First(LISTED)
        self._asked_for: list[tuple[Any, Record]] = []

    def add(self, batch: BatchRecord, example: Example) -> None:
        """Considers a contrast."""
        difference, tie = example.logit_diff, key_order(example.id, example.step)
        if self.spread.count:
            self.spread.add(order_key((example.id, example.step), self._seed), batch, example)
        self.largest.add((-abs(difference), tie), batch, example)
        self.strongest.add((-difference, tie), batch, example)
        if difference <= 0:
            self.failures.add((difference, tie), batch, example)
        if example.id in self._ids:
            self._asked_for.append((tie, record_of(batch, example)))

    def asked_for(self) -> list[Record]:
        """The contrasts of the facts asked for, in the order of their ids and steps."""
        return [record for _, record in sorted(self._asked_for, key=lambda item: item[0])]

    def not_found(self) -> list[int | str]:
        """The ids asked for that no contrast has."""
        missing = self._ids - {record["id"] for _, record in self._asked_for}
        return sorted(missing, key=lambda contrast_id: key_order(contrast_id, 0))


class RelationProfiles:
    """The profiles of the relations with the most contrasts."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._profiles: dict[str, EffectProfile] = {}

    def add_fact(self, contrasts: Sequence[ContrastMeans], like: ProfileSums) -> None:
        """Adds a fact to the profile of its relation; nothing where it has none.

        Args:
            contrasts: The means of its contrasts.
            like: Names the layers, the component and the rule.
        """
        relation = contrasts[0].relation
        if not relation:
            return
        if relation not in self._profiles:
            self._profiles[relation] = EffectProfile(like.layers, like.component, like.rule)
        self._counts[relation] += len(contrasts)
        self._profiles[relation].add_fact(contrasts)

    def compute(self, checked: Sequence[CheckedMeans]) -> dict[str, dict[str, Any]]:
        """The profiles by relation, in the order of their names; none where all contrasts are of one relation.

        Args:
            checked: The contrasts that have exact effects.
        """
        if len(self._counts) < 2:
            return {}
        largest = sorted(self._counts, key=lambda relation: (-self._counts[relation], relation))
        return {
            relation: self._profiles[relation].compute(
                [each for each in checked if each.contrast.relation == relation]
            )
            for relation in sorted(largest[:LARGEST_RELATIONS])
        }


class _First:
    """The contrasts that come first by a key."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._bound: Any = None
        self._kept: list[tuple[Any, BatchRecord, Example]] = []

    def add(self, key: Any, batch: BatchRecord, example: Example) -> None:
        if not self.count or (self._bound is not None and key >= self._bound):
            return
        # Without the other contrasts of its file, which would stay in memory with it.
        self._kept.append((key, msgspec.structs.replace(batch, examples=[example]), example))
        # Sorted only now and then: most contrasts of a large run are beyond the bound.
        if len(self._kept) >= 2 * self.count:
            self._cut()

    def records(self) -> list[Record]:
        self._cut()
        return [record_of(batch, example) for _, batch, example in self._kept]

    def _cut(self) -> None:
        self._kept.sort(key=lambda item: item[0])
        del self._kept[self.count :]
        if len(self._kept) == self.count and self._kept:
            self._bound = self._kept[-1][0]
