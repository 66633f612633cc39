"""What a finished run's records show beyond its summary: relations, the strongest facts, the failures."""

from __future__ import annotations

import heapq
import statistics
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from lit_attr.evaluation.agreement import FEWER_TOP, verdict
from lit_attr.evaluation.summary import RunSummary, strongest_cells
from lit_attr.records.folder import OutputFolder

LARGEST_RELATIONS = 6
LISTED = 10


class Findings(NamedTuple):
    """What is read from the batch files when all is written.

    Attributes:
        median_logit_diff: Of the contrasts that tell two tokens apart; None where there is none.
        strongest: Examples with the largest logit differences, the largest first.
        failures: Examples that prefer the false answer, the clearest first.
        asked_for: Examples with the ids asked for.
        largest: As many examples as asked for with the largest |logit difference|.
        relations: The profiles of the largest relations, by relation.
    """

    median_logit_diff: float | None
    strongest: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    asked_for: list[dict[str, Any]]
    largest: list[dict[str, Any]]
    relations: dict[str, dict[str, Any]]


def read_findings(folder: OutputFolder, *, ids: Collection[int | str] = (), largest: int = 0) -> Findings:
    """Reads a folder's records, once.

    Args:
        folder: The output folder.
        ids: Whose examples are wanted.
        largest: How many of the examples with the largest |logit difference| are wanted.
    """
    counts: Counter[str] = Counter()
    profiles: dict[str, RunSummary] = {}
    differences: list[float] = []
    strongest, failures, extreme = _Top(LISTED), _Top(LISTED), _Top(largest)
    asked_for = []
    for _, record in folder.read_batches():
        by_relation: dict[str, list[dict[str, Any]]] = {}
        for example in record["examples"]:
            if example["true_token_id"] == example["false_token_id"]:
                continue  # a token against itself tells nothing apart
            difference = example["logit_diff"]
            differences.append(difference)
            strongest.add(difference, example)
            extreme.add(abs(difference), example)
            if difference <= 0:
                failures.add(-difference, example)
            if example["id"] in ids:
                asked_for.append(example)
            if example["relation_id"]:
                by_relation.setdefault(example["relation_id"], []).append(example)
        for relation, examples in by_relation.items():
            counts[relation] += len(examples)
            if relation not in profiles:
                profiles[relation] = RunSummary(record["layers"], record["component"], record["rule"])
            profiles[relation].add_record({"examples": examples})
    chosen = [relation for relation, _ in counts.most_common(LARGEST_RELATIONS)] if len(counts) > 1 else []
    return Findings(
        statistics.median(differences) if differences else None,
        strongest.best(),
        failures.best(),
        asked_for,
        extreme.best(),
        {relation: profiles[relation].compute(together=False)["profile"] for relation in sorted(chosen)},
    )


def summary_page(summary: Mapping[str, Any], manifest: Mapping[str, Any], findings: Findings) -> str:
    """A page of Markdown for TensorBoard's Text tab; what comes from the data is escaped."""
    share = summary["contrast_accuracy"]
    lines = [
        "## Found",
        "",
        *_table(
            ("", ""),
            (
                ("contrasts", summary["contrasts"]),
                ("known (true answer above every other token)", summary["known"]),
                ("rows refused", summary["rejected"]),
                ("contrast accuracy (true above false)", f"{share:.1%}" if share is not None else "-"),
                ("median logit difference", _number(findings.median_logit_diff)),
            ),
        ),
        "",
        "Strongest mean scores of each role, in logits:",
        "",
        *_table(
            ("role", "layer: mean score"),
            (
                (role, ", ".join(f"{layer}: {score:+.3f}" for score, layer, _ in cells))
                for role, cells in strongest_cells(summary["profile"]).items()
            ),
        ),
    ]
    if (trust := summary.get("trust")) is not None:
        agreements = {"all": {**trust, **{f"top_{FEWER_TOP}_overlap": None}}, **trust["by_layer"]}
        names = [*next(iter(trust["by_layer"].values()))]
        rows = ((layer, *(_number(found[name]) for name in names)) for layer, found in agreements.items())
        heads = ("layer", *(name.replace("_", " ") for name in names))
        lines += ["", "## Trust", "", _escaped(verdict(trust)), "", *_table(heads, rows)]
    for title, examples in (
        ("Strongest facts", findings.strongest),
        ("Failures: the false answer preferred", findings.failures),
    ):
        rows = (
            (
                example["id"],
                example["prompt"],
                example["target_true"],
                example["target_false"],
                _number(example["logit_diff"]),
            )
            for example in examples
        )
        lines += ["", f"## {title}", "", *_table(("id", "prompt", "true", "false", "logit difference"), rows)]
    for group in ("model", "data"):
        given = ((name, value) for name, value in manifest[group].items() if value is not None)
        lines += ["", f"## Settings: {group}", "", *_table(("setting", "value"), given)]
    return "\n".join(lines)


class _Top:
    """The examples with the largest keys."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, dict[str, Any]]] = []
        self._added = 0

    def add(self, key: float, example: dict[str, Any]) -> None:
        self._added += 1
        # The running number keeps equal keys in the order of the files, and examples from being compared.
        heapq.heappush(self._heap, (key, -self._added, example))
        if len(self._heap) > self._count:
            heapq.heappop(self._heap)

    def best(self) -> list[dict[str, Any]]:
        return [example for _, _, example in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _table(head: tuple[str, ...], rows: Iterator[tuple[Any, ...]] | tuple[tuple[Any, ...], ...]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _escaped(value: object) -> str:
    """As it stands, whatever Markdown or HTML it looks like."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in r"\`*_{}[]()#+-.!|~" else char for char in text)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
