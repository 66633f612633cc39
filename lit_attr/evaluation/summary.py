"""The summary of a run, computed from its records alone."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from lit_attr.errors import UserError
from lit_attr.evaluation.answers import AnswerCounts
from lit_attr.evaluation.component import ComponentReading, Sampled, resolution_of
from lit_attr.evaluation.findings import Chosen, ComponentViews, RunFindings
from lit_attr.evaluation.neurons import NeuronCounts
from lit_attr.evaluation.validity.adaptive import AdaptiveCells, adaptive_report
from lit_attr.evaluation.validity.agreement import agreement_together
from lit_attr.evaluation.validity.faithfulness import faithfulness_report
from lit_attr.facts.contrasts import ContrastKey, order_key
from lit_attr.records.folder import RunFolder
from lit_attr.records.kept import read_error_model
from lit_attr.records.schema import FORMAT_VERSION, SUMMARY_FORMAT, BatchRecord, ExactRecord, Example
from lit_attr.records.screening import read_screened

# Where the summary of a run of several components has the figures of those after the first.
OTHERS = "other_components"


def summarise(
    folder: RunFolder, *, heatmap_ids: Collection[int | str] = (), spread: int = 0, largest: int = 0
) -> RunFindings:
    """Computes the summary of a run, and what its pictures show, in one pass over its batch files.

    The result depends on the contrasts on disk alone, not on how they are spread over files: it is the same after
    any interruption and with any number of processes. All exact effects on disk count: in a run that was extended,
    those of the sample of fewer rows as well. A contrast of a token with itself, which the step `all` can
    give, is left out: its scores are all 0.

    The summary of a run of several components has the figures of the one named first; those of the others, by
    name, are in `other_components`. The faithfulness curves, which rank the cells of all components together, are
    in the agreement of the first; `adaptive` of each has what all cells cost, and their agreement.

    Args:
        folder: The run's folder.
        heatmap_ids: The facts whose contrasts are returned as `asked_for`.
        spread: How many contrasts are returned that come first in the run's random order.
        largest: How many contrasts are returned that have the largest |logit difference|.

    Raises:
        UserError: A file in the folder does not follow its format.
    """
    manifest, (_, screened) = folder.read_manifest(), read_screened(folder.screened)
    settings, step = manifest.get("model", {}), manifest.get("data", {}).get("step")
    exact = {(record.id, record.step): (path, record) for path, record in folder.read_exact()}
    chosen = Chosen(heatmap_ids, spread=spread, largest=largest, seed=settings.get("sample_seed", 0))
    # A stranger's data module may have no setting: then a fact may have several contrasts.
    reading = _Reading(settings, exact, chosen, one_contrast_a_fact=step == "divergence")
    reading.use_error_model(read_error_model(folder))
    for path, batch in folder.read_batches():
        reading.add(path, batch)
    reading.add_waiting_facts()
    found = reading.findings()
    first, *others = found.values()
    others_by_name = dict(zip([*found][1:], others, strict=True))
    return RunFindings(
        summary={
            "format": SUMMARY_FORMAT,
            "version": FORMAT_VERSION,
            **reading.answers.compute(),
            "median_logit_diff": statistics.median(reading.differences) if reading.differences else None,
            "rejected": folder.count_rejected(),
            **({"left_out": int((~screened.is_kept_N).sum())} if len(screened.is_kept_N) else {}),
            **first.summary,
            "neurons": reading.neurons.compute(),
            **({OTHERS: {name: each.summary for name, each in others_by_name.items()}} if others else {}),
        },
        spread=chosen.spread.records(),
        asked_for=chosen.asked_for(),
        not_found=chosen.not_found(),
        largest=chosen.largest.records(),
        strongest=chosen.strongest.records(),
        failures=chosen.failures.records(),
        components={name: each.views for name, each in found.items()},
    )


def by_component(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A run's summary for each of its components, the one named first at the beginning.

    They differ in `profile`, `known_profile`, `agreement` and `adaptive`.

    Args:
        summary: The summary.
    """
    first = {name: value for name, value in summary.items() if name != OTHERS}
    others = {name: {**first, **found} for name, found in summary.get(OTHERS, {}).items()}
    return {summary["profile"]["component"]: first, **others}


class _Found(NamedTuple):
    """What is found of one component: its part of the summary, and what its pictures show."""

    summary: dict[str, Any]
    views: ComponentViews


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
        self.differences = array("d")
        self.neurons = NeuronCounts()
        self._settings = settings
        self._one_contrast_a_fact = one_contrast_a_fact
        self._shape: tuple[list[int], list[str], str] | None = None
        # A run of which every contrast is refused has no batch file; its settings know the layers.
        self.components = self._components(
            settings.get("layers", []), str(settings.get("component", "")).split(", "), settings.get("rule", "")
        )
        self._adaptive_cells: AdaptiveCells | None = None
        self._exact = exact
        self._chosen = chosen
        # Of the contrasts without exact effects the first, by the run's random order.
        self._first_unchecked: bytes | None = None

    def _components(self, layers: Sequence[int], names: Sequence[str], rule: str) -> dict[str, ComponentReading]:
        return {
            name: ComponentReading(layers, name, rule, one_contrast_a_fact=self._one_contrast_a_fact)
            for name in names
        }

    def use_error_model(self, fields: Mapping[str, Any] | None) -> None:
        """Counts what an adaptive run has computed exactly; None for any other run."""
        self._adaptive_cells = None if fields is None else AdaptiveCells(fields)

    def add(self, path: Path, batch: BatchRecord) -> None:
        """Adds the contrasts of a batch file.

        Raises:
            UserError: It does not match the others, or a file of exact effects does not match it.
        """
        shape = batch.layers, [*batch.examples[0].scores], batch.rule
        if self._shape is None:
            self._shape = shape
            self.components = self._components(*shape)
        if shape != self._shape:
            raise UserError(
                f"{path}: it has other layers, another component or another rule than those before; move it away "
                "and run again"
            )
        for example in batch.examples:
            if example.true_token_id != example.false_token_id:
                self._add(batch, example)

    def _add(self, batch: BatchRecord, example: Example) -> None:
        self.answers.add(example.logit_diff, example.rank_true)
        self.differences.append(example.logit_diff)
        self.neurons.add(example)
        self._chosen.add(batch, example)
        sampled = self._sampled(example)
        for component in self.components.values():
            component.add(example, sampled)
        is_pilot = sampled is not None and sampled.record.is_pilot
        if self._adaptive_cells is not None and example.is_exact is not UNSET and not is_pilot:
            self._adaptive_cells.add(example.is_exact)

    def _sampled(self, example: Example) -> Sampled | None:
        if not self._exact:
            return None
        key = example.id, example.step
        order = order_key(key, self._seed)
        if key not in self._exact:
            self._first_unchecked = min(order, self._first_unchecked or order)
            return None
        return Sampled(*self._exact[key], order)

    def add_waiting_facts(self) -> None:
        """Adds the facts whose contrasts are gathered until all files are read."""
        for component in self.components.values():
            component.add_waiting_facts()

    def findings(self) -> dict[str, _Found]:
        """What is found of each component, the one named first at the beginning."""
        found: dict[str, _Found] = {}
        for name, component in self.components.items():
            checked = component.checked(self._first_unchecked)
            is_known = [each for each in checked if each.contrast.is_known]
            agreement, points = component.agreement()
            if agreement is not None:
                agreement["sample"] = _kind_of_sample(
                    [record.place for _, record in self._exact.values() if not record.is_pilot]
                )
            summary = {
                "profile": component.profile.compute(checked),
                "known_profile": component.known_profile.compute(is_known),
                "agreement": agreement,
                "adaptive": adaptive_report(self._settings, self._adaptive_cells, name),
            }
            found[name] = _Found(summary, ComponentViews(component.relations.compute(checked), points))
        self._add_joint_figures(found)
        return found

    def _add_joint_figures(self, found: Mapping[str, _Found]) -> None:
        """Adds what is of the cells of all components together: faithfulness, and whether a promise is kept."""
        compared = {name: component.compared() for name, component in self.components.items()}
        first, *others = compared
        records = [record for record, _ in compared[first]]
        if not records:
            return
        agreements = {name: each.summary["agreement"] for name, each in found.items()}
        faithfulness = faithfulness_report([record.curves for record in records if record.curves is not None])
        if faithfulness is not None:
            agreements[first]["faithfulness"] = faithfulness
        if others and found[first].summary["adaptive"] is not None:
            contrasts = {name: [each for _, each in pairs] for name, pairs in compared.items()}
            together = agreement_together(contrasts, agreements, resolution_of(records))
            for each in found.values():
                each.summary["adaptive"]["agreement"] = together


def _kind_of_sample(places: Sequence[int | None]) -> str:
    """Which contrasts have exact effects: a random sample, two of them (in an extended run), or the first seen."""
    if None in places:
        return "first seen"
    # A larger limit gives contrasts other places; those of the smaller one keep theirs.
    return "random" if len(set(places)) == len(places) else "random, of an extended run"
