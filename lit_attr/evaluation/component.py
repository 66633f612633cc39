"""What the records of a run say of one component: its means, and its agreement with exact effects.

Axes: L layers, R roles, T tokens of one contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.evaluation.findings import Points, RelationProfiles, key_order
from lit_attr.evaluation.profile import CheckedMeans, ContrastMeans, EffectProfile, ProfileSums, contrast_means
from lit_attr.evaluation.validity.agreement import Compared, agreement_report
from lit_attr.evaluation.validity.windows import windows_report
from lit_attr.records.schema import ExactRecord, Example

# As many cells as a scatter plot can show.
MOST_POINTS = 20_000


class Sampled(NamedTuple):
    """The exact effects of a contrast.

    Attributes:
        path: Their file.
        record: What is in it.
        order: Sorts contrasts in the run's random order.
    """

    path: Path
    record: ExactRecord
    order: bytes


class ComponentReading:
    """What is gathered of one component while the batch files of a run are read.

    Args:
        layers: The layers of the scores, in their order.
        component: The component.
        rule: The rule of the scores.
        one_contrast_a_fact: Whether no fact has several contrasts.
    """

    def __init__(self, layers: Sequence[int], component: str, rule: str, *, one_contrast_a_fact: bool) -> None:
        self.profile, self.known_profile = (EffectProfile(layers, component, rule) for _ in range(2))
        self.relations = RelationProfiles()
        self._one_contrast_a_fact = one_contrast_a_fact
        self._waiting: dict[int | str, list[ContrastMeans]] = {}
        self._compared: list[tuple[ExactRecord, Compared]] = []
        # Contrasts with exact effects, by the run's random order.
        self._checked: list[tuple[bytes, CheckedMeans]] = []

    @property
    def like(self) -> ProfileSums:
        """Names the layers, the component and the rule."""
        return self.profile.scores

    def add(self, example: Example, sampled: Sampled | None) -> None:
        """Adds a contrast.

        Args:
            example: Its record.
            sampled: Its exact effects, if it has any.

        Raises:
            UserError: The file of exact effects does not match the scores.
        """
        scores_LT = example.scores[self.like.component].sum
        means_of = contrast_means(scores_LT, example.roles, example.subject_span)
        means = ContrastMeans(example.id, example.step, example.relation_id, example.rank_true == 0, *means_of)
        if self._one_contrast_a_fact:
            self._add_fact([means])
        else:
            # The other contrasts of the fact may be in any file.
            self._waiting.setdefault(example.id, []).append(means)
        if sampled is not None and sampled.record.refused is None:
            self._check(example, scores_LT, means, sampled)

    def _check(
        self, example: Example, scores_LT: NDArray[np.float64], means: ContrastMeans, sampled: Sampled
    ) -> None:
        """Gathers what a contrast's exact effects say of its scores."""
        path, record, order = sampled
        effects_LT = record.effects.get(self.like.component)
        if effects_LT is None or effects_LT.shape != scores_LT.shape:
            raise UserError(
                f"{path}: effects: they are of other cells than the scores; move it away and run again"
            )
        effects_KLR, _ = contrast_means(effects_LT, example.roles, example.subject_span)
        if record.is_pilot or record.place is not None:
            self._checked.append((order, CheckedMeans(means, effects_KLR, not record.is_pilot)))
        if not record.is_pilot:
            is_exact_LT = None
            if example.is_exact is not UNSET:
                is_exact_LT = np.array(example.is_exact[self.like.component])
            texts = example.roles, example.subject_span, example.id
            self._compared.append((record, Compared(scores_LT, effects_LT, *texts, is_exact_LT)))

    def add_waiting_facts(self) -> None:
        """Adds the facts whose contrasts are gathered until all files are read."""
        for contrasts in self._waiting.values():
            # The sum over a fact's contrasts must not depend on the order of the files.
            self._add_fact(sorted(contrasts, key=lambda each: each.step))
        self._waiting.clear()

    def _add_fact(self, contrasts: Sequence[ContrastMeans]) -> None:
        self.profile.add_fact(contrasts)
        if known := [each for each in contrasts if each.is_known]:
            self.known_profile.add_fact(known)
        self.relations.add_fact(contrasts, self.like)

    def checked(self, bound: bytes | None) -> list[CheckedMeans]:
        """The means of the contrasts of the pilot and of the random sample.

        Args:
            bound: Where the run's random order comes to the first contrast without exact effects. The sample ends
                there: what an extended run has beyond is of the sample of fewer rows, and not random in all.
        """
        taken = [means for order, means in self._checked if not means.is_sampled or bound is None or order < bound]
        return sorted(taken, key=lambda means: key_order(means.contrast.fact, means.contrast.step))

    def compared(self) -> list[tuple[ExactRecord, Compared]]:
        """The contrasts with exact effects, without the pilot, in an order that does not depend on files."""
        return sorted(self._compared, key=_order_of)

    def agreement(self) -> tuple[dict[str, Any] | None, Points | None]:
        """The agreement of scores and exact effects, and their cells; None where nothing is compared."""
        if not self._compared:
            return None, None
        compared = self.compared()
        report = agreement_report(
            self.like.layers,
            [each for _, each in compared],
            resolution_of([record for record, _ in compared]),
            # All of a run have the same.
            compared[0][0].ablation,
        )
        windows = windows_report(self.like.layers, self.like.component, self.like.rule, compared)
        if windows is not None:
            report["windows"] = windows
        return report, _points(self.like.layers, [each for _, each in compared])


def resolution_of(records: Sequence[ExactRecord]) -> float:
    """The noise of the exact effects of several contrasts, in logits.

    That of one contrast is measured at one cell: the root mean square over contrasts is that of all.
    """
    return float(np.sqrt(np.mean([record.resolution**2 for record in records])))


def _order_of(compared: tuple[ExactRecord, Compared]) -> tuple[Any, ...]:
    record, _ = compared
    return record.place is None, record.place or 0, key_order(record.id, record.step)


def _points(layers: Sequence[int], compared: Sequence[Compared]) -> Points:
    """The cells of the first contrasts, as many as a picture can show."""
    layers_L = np.array(layers)
    parts: list[tuple[NDArray[Any], ...]] = []
    count = 0
    for each in compared:
        if count >= MOST_POINTS:
            break
        layers_LT = np.broadcast_to(layers_L[:, None], each.scores_LT.shape)
        parts.append((each.scores_LT.ravel(), each.effects_LT.ravel(), layers_LT.ravel()))
        count += each.scores_LT.size
    return Points(*(np.concatenate(part)[:MOST_POINTS] for part in zip(*parts, strict=True)))
