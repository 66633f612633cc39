"""The summary of a run, computed from its records alone.

Axes: L layers, R roles, N cells.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.evaluation.answers import AnswerCounts
from lit_attr.evaluation.findings import Chosen, Points, RelationProfiles, RunFindings, key_order
from lit_attr.evaluation.neurons import NeuronCounts
from lit_attr.evaluation.profile import (
    KINDS,
    CheckedMeans,
    ContrastMeans,
    EffectProfile,
    ProfileSums,
    contrast_means,
)
from lit_attr.evaluation.validity.agreement import Compared, ExactCells, agreement_report
from lit_attr.evaluation.validity.faithfulness import faithfulness_report
from lit_attr.facts.contrasts import ContrastKey, order_key
from lit_attr.facts.roles import POSITION_0
from lit_attr.records.folder import RunFolder
from lit_attr.records.kept import read_error_model
from lit_attr.records.schema import FORMAT_VERSION, SUMMARY_FORMAT, BatchRecord, ExactRecord, Example

# As many cells as a scatter plot can show.
MOST_POINTS = 20_000


def summarise(
    folder: RunFolder, *, heatmap_ids: Collection[int | str] = (), spread: int = 0, largest: int = 0
) -> RunFindings:
    """Computes the summary of a run, and what its pictures show, in one pass over its batch files.

    The result depends on the contrasts on disk alone, not on how they are spread over files: it is the same after
    any interruption and with any number of processes. All exact effects on disk count: in a run that was extended,
    those of the sample of fewer rows as well. A contrast of a token with itself, which the step `all` can
    give, is left out: its scores are all 0.

    Args:
        folder: The run's folder.
        heatmap_ids: The facts whose contrasts are returned as `asked_for`.
        spread: How many contrasts are returned that come first in the run's random order.
        largest: How many contrasts are returned that have the largest |logit difference|.

    Raises:
        UserError: A file in the folder does not follow its format.
    """
    manifest = folder.read_manifest()
    settings, step = manifest.get("model", {}), manifest.get("data", {}).get("step")
    exact = {(record.id, record.step): (path, record) for path, record in folder.read_exact()}
    chosen = Chosen(heatmap_ids, spread=spread, largest=largest, seed=settings.get("sample_seed", 0))
    # A stranger's data module may have no setting: then a fact may have several contrasts.
    reading = _Reading(settings, exact, chosen, one_contrast_a_fact=step == "divergence")
    reading.use_error_model(read_error_model(folder))
    for path, batch in folder.read_batches():
        reading.add(path, batch)
    reading.add_waiting_facts()
    agreement, points = reading.agreement()
    checked = reading.checked()
    is_known = [each for each in checked if each.contrast.is_known]
    return RunFindings(
        summary={
            "format": SUMMARY_FORMAT,
            "version": FORMAT_VERSION,
            **reading.answers.compute(),
            "median_logit_diff": statistics.median(reading.differences) if reading.differences else None,
            "rejected": folder.count_rejected(),
            "profile": reading.profile.compute(checked),
            "known_profile": reading.known_profile.compute(is_known),
            "agreement": agreement,
            "adaptive": reading.adaptive(settings),
            "neurons": reading.neurons.compute(),
        },
        spread=chosen.spread.records(),
        asked_for=chosen.asked_for(),
        not_found=chosen.not_found(),
        largest=chosen.largest.records(),
        strongest=chosen.strongest.records(),
        failures=chosen.failures.records(),
        relations=reading.relations.compute(checked),
        points=points,
    )


def has_effects(profile: Mapping[str, Any]) -> bool:
    """Whether a profile has mean exact effects. Otherwise its means are estimates alone."""
    # Counts of a run that goes on have none.
    return any(mean is not None for row in profile.get("mean_effect", ()) for mean in row)


def all_exact(profile: Mapping[str, Any]) -> bool:
    """Whether all facts of a profile have exact effects, so that its mean effects have no interval."""
    return has_effects(profile) and profile["sampled"] == profile["facts"]


def strongest_cells(
    profile: Mapping[str, Any], count: int = 3, measure: str | None = None
) -> dict[str, list[tuple[float, int, str]]]:
    """For each role, its layers with the largest means of either sign, as (mean, layer, role).

    Position 0, most often an attention sink, is apart: see :func:`strongest_at`.
    """
    found = {role: strongest_at(profile, role, count, measure) for role in profile["roles"] if role != POSITION_0}
    return {role: cells for role, cells in found.items() if cells}


def strongest_at(
    profile: Mapping[str, Any], role: str, count: int = 3, measure: str | None = None
) -> list[tuple[float, int, str]]:
    """The layers with the largest means of either sign at a role, as (mean, layer, role).

    Mean effects and magnitudes count only where their 95% interval excludes 0.

    Args:
        profile: The profile, as the summary has it.
        role: The role.
        count: How many layers, at most.
        measure: `mean_effect`, `mean_magnitude` or `mean_score`. Default: the mean effects where the profile has
            any, the mean scores where it has none.
    """
    measure = measure or ("mean_effect" if has_effects(profile) else "mean_score")
    column = profile["roles"].index(role)
    cells = [
        (row[column], layer, role)
        for layer, row in zip(profile["layers"], profile[measure], strict=True)
        if row[column] is not None
    ]
    if measure != "mean_score":
        cells = [cell for cell in cells if excludes_0(interval_at(profile, cell[1], role, measure))]
    return sorted(cells, key=lambda cell: -abs(cell[0]))[:count]


def interval_at(
    profile: Mapping[str, Any], layer: int, role: str, measure: str = "mean_effect"
) -> tuple[float, float]:
    """The ends of the 95% confidence interval of a mean effect or mean magnitude that is not None."""
    place, column = profile["layers"].index(layer), profile["roles"].index(role)
    low, high = next((low, high) for name, low, high in KINDS if name == measure)
    return profile[low][place][column], profile[high][place][column]


def mean_text(profile: Mapping[str, Any], cell: tuple[float, int, str], measure: str) -> str:
    """A mean of :func:`strongest_at` with its 95% confidence interval, if it has one."""
    mean, layer, role = cell
    # A magnitude has no sign.
    sign = "" if measure == "mean_magnitude" else "+"
    if measure == "mean_score" or all_exact(profile):
        return f"{mean:{sign}.3f}"
    low, high = interval_at(profile, layer, role, measure)
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def excludes_0(interval: tuple[float, float]) -> bool:
    """Whether an interval lies to one side of 0."""
    low, high = interval
    return low > 0 or high < 0


class _Reading:
    """What is gathered while the batch files of a run are read."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        exact: Mapping[ContrastKey, tuple[Path, ExactRecord]],
        chosen: Chosen,
        *,
        one_contrast_a_fact: bool,
    ) -> None:
        self._seed = settings.get("sample_seed", 0)
        self.answers = AnswerCounts()
        self.differences: list[float] = []
        self.relations = RelationProfiles()
        self.neurons = NeuronCounts()
        # A run of which every contrast is refused has no batch file; its settings know the layers.
        shape = settings.get("layers", []), settings.get("component", ""), settings.get("rule", "")
        self.profile, self.known_profile = EffectProfile(*shape), EffectProfile(*shape)
        self._is_empty = True
        self._one_contrast_a_fact = one_contrast_a_fact
        self._error_model: Mapping[str, Any] | None = None
        self._exact_cells: ExactCells | None = None
        self._waiting: dict[int | str, list[ContrastMeans]] = {}
        self._exact = exact
        self._chosen = chosen
        self._compared: list[tuple[ExactRecord, Compared]] = []
        # Contrasts with exact effects, and of those without any the first, by the run's random order.
        self._checked: list[tuple[bytes, CheckedMeans]] = []
        self._first_unchecked: bytes | None = None

    def add(self, path: Path, batch: BatchRecord) -> None:
        """Adds the contrasts of a batch file.

        Raises:
            UserError: It does not match the others, or a file of exact effects does not match it.
        """
        component = next(iter(batch.examples[0].scores))
        shape = batch.layers, component, batch.rule
        if self._is_empty:
            self.profile, self.known_profile = EffectProfile(*shape), EffectProfile(*shape)
            self._is_empty = False
        if shape != (list(self._like.layers), self._like.component, self._like.rule):
            raise UserError(
                f"{path}: it has other layers, another component or another rule than those before; move it away "
                "and run again"
            )
        for example in batch.examples:
            if example.true_token_id != example.false_token_id:
                self._add(batch, example, example.scores[component].sum)

    def _add(self, batch: BatchRecord, example: Example, scores_LT: NDArray[np.float64]) -> None:
        self.answers.add(example.logit_diff, example.rank_true)
        self.differences.append(example.logit_diff)
        self.neurons.add(example)
        means = self._means(example, scores_LT)
        if self._one_contrast_a_fact:
            self._add_fact([means])
        else:
            # The other contrasts of the fact may be in any file.
            self._waiting.setdefault(example.id, []).append(means)
        self._chosen.add(batch, example)
        self._check(example, scores_LT, means)
        is_exact_LT = self._is_exact_LT(example)
        _, record = self._exact.get((example.id, example.step), (None, None))
        if self._exact_cells is not None and is_exact_LT is not None and not (record and record.is_pilot):
            self._exact_cells.add(is_exact_LT)

    def _means(self, example: Example, scores_LT: NDArray[np.float64]) -> ContrastMeans:
        means_of = contrast_means(scores_LT, example.roles, example.subject_span)
        return ContrastMeans(example.id, example.step, example.relation_id, example.rank_true == 0, *means_of)

    def _check(self, example: Example, scores_LT: NDArray[np.float64], means: ContrastMeans) -> None:
        """Gathers what a contrast's exact effects say of its scores, if it has any."""
        if not self._exact:
            return
        order = order_key((example.id, example.step), self._seed)
        path, record = self._exact.get((example.id, example.step), (None, None))
        if record is None:
            self._first_unchecked = min(order, self._first_unchecked or order)
        elif record.refused is None:
            effects_LT = record.effects.get(self._like.component)
            if effects_LT is None or effects_LT.shape != scores_LT.shape:
                raise UserError(
                    f"{path}: effects: they are of other cells than the scores; move it away and run again"
                )
            effects_KLR, _ = contrast_means(effects_LT, example.roles, example.subject_span)
            if record.is_pilot or record.place is not None:
                self._checked.append((order, CheckedMeans(means, effects_KLR, not record.is_pilot)))
            if not record.is_pilot:
                is_exact_LT = self._is_exact_LT(example)
                compared = Compared(
                    scores_LT, effects_LT, example.roles, example.subject_span, example.id, is_exact_LT
                )
                self._compared.append((record, compared))

    def _is_exact_LT(self, example: Example) -> NDArray[np.bool_] | None:
        if example.is_exact is UNSET:
            return None
        return np.array(example.is_exact[self._like.component])

    def use_error_model(self, fields: Mapping[str, Any] | None) -> None:
        """Counts what an adaptive run has computed exactly; None for any other run."""
        self._error_model = fields
        if fields is not None:
            self._exact_cells = ExactCells(fields["layers"], fields["depth"])

    def adaptive(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """What an adaptive run was asked for, what its pilot expected, and what it paid; None for others."""
        asked = settings.get("min_agreement")
        if asked is None:
            return None
        fields = self._error_model or {}
        paid = self._exact_cells.compute() if self._exact_cells is not None else {"exact_share": None}
        return {
            "min_agreement": asked,
            "min_agreement_by_layer": settings.get("min_agreement_by_layer"),
            "max_cost": settings.get("max_cost"),
            # A run all of whose contrasts are the pilot has no error model.
            "pilot": fields.get("contrasts"),
            "expected": fields.get("expected"),
            "expected_by_layer": fields.get("expected_by_layer"),
            **paid,
        }

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
        self.relations.add_fact(contrasts, self._like)

    def checked(self) -> list[CheckedMeans]:
        """The means of the contrasts of the pilot and of the random sample.

        The sample ends where the run's random order comes to a contrast without exact effects: what an extended
        run has beyond is of the sample of fewer rows, and not random in all.
        """
        bound = self._first_unchecked
        taken = [means for order, means in self._checked if not means.is_sampled or bound is None or order < bound]
        return sorted(taken, key=lambda means: key_order(means.contrast.fact, means.contrast.step))

    @property
    def _like(self) -> ProfileSums:
        """Names the layers, the component and the rule."""
        return self.profile.scores

    def agreement(self) -> tuple[dict[str, Any] | None, Points | None]:
        """The agreement of scores and exact effects, and their cells; None where nothing is compared."""
        if not self._compared:
            return None, None
        compared = sorted(self._compared, key=_order_of)
        # The noise of one contrast is measured at one cell: the root mean square over contrasts is that of all.
        resolution = float(np.sqrt(np.mean([record.resolution**2 for record, _ in compared])))
        report = agreement_report(self._like.layers, [each for _, each in compared], resolution)
        report["sample"] = _kind_of_sample([each.place for _, each in self._exact.values() if not each.is_pilot])
        curves = [record.curves for record, _ in compared if record.curves is not None]
        faithfulness = faithfulness_report(curves)
        if faithfulness is not None:
            report["faithfulness"] = faithfulness
        return report, _points(self._like.layers, [each for _, each in compared])


def _kind_of_sample(places: Sequence[int | None]) -> str:
    """Which contrasts have exact effects: a random sample, two of them (in an extended run), or the first seen."""
    if None in places:
        return "first seen"
    # A larger limit gives contrasts other places; those of the smaller one keep theirs.
    return "random" if len(set(places)) == len(places) else "random, of an extended run"


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
