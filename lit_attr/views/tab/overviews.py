"""What a run shows as a whole: its summary, from the functions that the run itself summarises with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_attr.attribution.catalogue import rule_title
from lit_attr.evaluation.index.runs import RunIndex
from lit_attr.evaluation.summary import by_component, summarise
from lit_attr.evaluation.validity.agreement import promise_line, verdict
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.records.files import read_batch, read_exact
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import BatchRecord, ExactRecord
from lit_attr.views.colours import ANCHORS
from lit_attr.views.curves import CONFIDENCE

MOST_RELATIONS = 500


class ReadableFolder(RunFolder):
    """The files of a run that the index could read.

    Args:
        index: The run's index.
    """

    def __init__(self, index: RunIndex) -> None:
        super().__init__(index.folder.path)
        self._index = index

    def read_batches(self) -> Iterator[tuple[Path, BatchRecord]]:
        """The batch files and their records."""
        for name in self._index.batch_names():
            yield self.batches / name, read_batch(self.batches / name)

    def read_exact(self) -> Iterator[tuple[Path, ExactRecord]]:
        """The files of exact effects and their records."""
        for path in self._index.exact_paths():
            yield path, read_exact(path)


def run_page(index: RunIndex) -> dict[str, Any]:
    """What every view of a run needs: how far it is, what can be chosen, what was left out."""
    manifest, columns = index.manifest, index.columns
    counts = Counter(relation for relation in columns.relations if relation)
    model = manifest["model"]
    return {
        "contrasts": len(columns.facts),
        "expected": manifest["data"].get("contrasts"),
        # The run writes it last.
        "is_finished": index.folder.summary.is_file(),
        "checked": sum(index.is_checked(fact.key) for fact in columns.facts),
        # With the step `all` a fact has several contrasts.
        "has_steps": manifest["data"].get("step") != "divergence",
        "components": index.components,
        "layers": index.layers,
        "roles": list(MEAN_ROLES),
        "relations": [{"name": name, "count": count} for name, count in counts.most_common(MOST_RELATIONS)],
        "model": model.get("model_name"),
        "rule": model.get("rule"),
        "rule_title": rule_title(str(model.get("rule") or "scores")),
        "min_agreement": model.get("min_agreement"),
        "problems": index.problems,
        "colours": colours(),
    }


def overview_page(index: RunIndex, component: str) -> dict[str, Any]:
    """The summary of a run with its settings, in JSON types.

    Raises:
        UserError: Files do not match each other.
    """
    summary = summary_of(index, component)
    agreement, adaptive = summary["agreement"], summary["adaptive"]
    manifest = index.manifest
    for name in ("profile", "known_profile"):
        summary[name] = {**summary[name], **score_bands(summary[name])}
    return {
        "summary": summary,
        "verdict": None if agreement is None else verdict(agreement),
        "promise": None if adaptive is None else promise_line(adaptive, agreement),
        "settings": {
            group: {name: value for name, value in manifest[group].items() if value is not None}
            for group in ("model", "data")
        },
        "libraries": manifest.get("libraries", {}),
        "created": manifest.get("created"),
    }


def summary_of(index: RunIndex, component: str) -> dict[str, Any]:
    """The run's own summary where it is of all records on disk, and otherwise one that is made now.

    Raises:
        UserError: Files do not match each other.
    """
    count = sum(not fact.is_trivial for fact in index.columns.facts)
    written = index.folder.read_summary()
    if (
        written is not None
        and not index.problems
        and written.get("contrasts") == count
        and index.folder.summary.stat().st_mtime_ns >= index.newest
    ):
        return by_component(written)[component]
    return by_component(summarise(ReadableFolder(index)).summary)[component]


def score_bands(profile: Mapping[str, Any]) -> dict[str, list[list[float | None]]]:
    """The ends of the 95% intervals of the mean scores, `score_low` and `score_high`, as the curves have them."""
    return {
        name: [
            [
                None if mean is None or error is None else mean + sign * CONFIDENCE * error
                for mean, error in zip(means, errors, strict=True)
            ]
            for means, errors in zip(profile["mean_score"], profile["standard_error"], strict=True)
        ]
        for name, sign in (("score_low", -1), ("score_high", 1))
    }


def colours() -> list[list[Any]]:
    """The colour scale of the pictures, from 0 (the lowest) to 1."""
    return [[place / (len(ANCHORS) - 1), f"#{anchor}"] for place, anchor in enumerate(ANCHORS)]
