"""The pages of text that TensorBoard shows of a finished run, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lit_attr.evaluation.findings import RunFindings
from lit_attr.evaluation.strongest import all_exact, has_effects, mean_text, strongest_at, strongest_cells
from lit_attr.evaluation.summary import by_component
from lit_attr.evaluation.validity.agreement import promise_line, verdict
from lit_attr.facts.roles import POSITION_0
from lit_attr.text import cut

MAX_CELL = 1_000  # characters
LARGEST_RELATIONS = 6
MARKDOWN = r"\`*_{}[]()#+-.!|~"


def summary_page(findings: RunFindings, manifest: Mapping[str, Any]) -> str:
    """The page on one run; whatever comes from its data is escaped.

    Args:
        findings: The run's summary and what else its records show.
        manifest: The run's manifest.
    """
    summary = findings.summary
    lines = ["Every fact, with its heatmap and its exact effects: the tab [Attributions](#attributions).", ""]
    lines += ["## Found", "", *_counts(summary)]
    components = by_component(summary)
    for component, found in components.items():
        if len(components) > 1:
            lines += ["", f"### {_escaped(component)}"]
        lines += ["", *_strongest_layers(found["profile"])]
    if summary["adaptive"] is not None:
        promise = _escaped(promise_line(summary["adaptive"], summary["agreement"]))
        lines += ["", "## Adaptive attribution", "", promise]
    for component, found in components.items():
        if found["agreement"] is not None:
            of = f" of {_escaped(component)}" if len(components) > 1 else ""
            lines += ["", f"## Agreement{of}", "", *_agreement(found["agreement"])]
    lines += ["", "## Strongest facts", "", *_facts(findings.strongest)]
    lines += ["", "## Failures: the false answer preferred", "", *_facts(findings.failures)]
    for group in ("model", "data"):
        given = ((name, value) for name, value in manifest[group].items() if value is not None)
        lines += ["", f"## Settings: {group}", "", *_table(("setting", "value"), given)]
    return "\n".join(lines)


def neurons_page(neurons: Mapping[str, Any]) -> str:
    """The page on the neurons of known facts: of the relations with the most of them.

    Args:
        neurons: What the summary has of them.
    """
    relations = sorted(neurons["relations"], key=lambda each: -each["known"])[:LARGEST_RELATIONS]
    lines = [
        "Neurons by how often they are among those with the largest scores of a contrast, over known contrasts "
        f"alone ({neurons['known']}). Mean scores, in logits, are over the contrasts that list the neuron.",
    ]
    for relation in relations:
        name = _escaped(relation["relation"]) or "no relation"
        lines += ["", f"## {name}: {relation['known']} known contrasts", ""]
        rows = (
            (
                each["layer"],
                each["neuron"],
                f"{each['share']:.0%}",
                "-" if each["other_share"] is None else f"{each['other_share']:.0%}",
                f"{each['mean_score']:+.3f}",
            )
            for each in relation["neurons"]
        )
        lines += _table(("layer", "neuron", "contrasts", "contrasts of other relations", "mean score"), rows)
    return "\n".join(lines)


def _counts(summary: Mapping[str, Any]) -> Iterator[str]:
    share = summary["contrast_accuracy"]
    return _table(
        ("", ""),
        (
            ("contrasts", summary["contrasts"]),
            ("known (true answer above every other token)", summary["known"]),
            ("rows refused", summary["rejected"]),
            ("contrast accuracy (true above false)", f"{share:.1%}" if share is not None else "-"),
            ("median logit difference", _number(summary["median_logit_diff"])),
        ),
    )


def _strongest_layers(profile: Mapping[str, Any]) -> Iterator[str]:
    """The layers with the largest means at each role: of exact effects where there are any, else of scores."""
    if not has_effects(profile):
        yield "Strongest mean scores (estimates) of each role, in logits:"
        yield ""
        cells = _layers_by_role(profile, "mean_score")
        yield from _table(("role", "layer: mean score"), cells.items())
        return
    exact = "exact effects of all facts" if all_exact(profile) else "with the 95% intervals that exclude 0"
    yield f"Strongest mean effects of each role, in logits, {exact}:"
    yield ""
    heads = ("role", "facts with exact effects", "layer: mean effect", "layer: mean magnitude")
    yield from _table(heads, _effect_rows(profile))


def _effect_rows(profile: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    found = [_layers_by_role(profile, measure) for measure in ("mean_effect", "mean_magnitude")]
    for role, facts, sampled, mean in zip(
        profile["roles"], profile["facts"], profile["sampled"], profile["mean_effect"][0], strict=True
    ):
        name, missing = _name_of(role), "too few" if mean is None else "none"
        if facts:
            yield name, sampled, *(cells.get(name, missing) for cells in found)


def _layers_by_role(profile: Mapping[str, Any], measure: str) -> dict[str, str]:
    cells = strongest_cells(profile, measure=measure)
    if found := strongest_at(profile, POSITION_0, measure=measure):
        cells[POSITION_0] = found
    return {
        _name_of(role): ", ".join(f"{cell[1]}: {mean_text(profile, cell, measure)}" for cell in found)
        for role, found in cells.items()
    }


def _name_of(role: str) -> str:
    return f"{POSITION_0} (often an attention sink, in no role)" if role == POSITION_0 else role


def _agreement(agreement: Mapping[str, Any]) -> Iterator[str]:
    by_layer = agreement["by_layer"]
    names = [name for name in next(iter(by_layer.values())) if name not in ("pearson", "intervals")]
    yield _escaped(verdict(agreement))
    yield ""
    # Over all cells and in a layer, different numbers of the largest cells are compared.
    parts = {"all": agreement, "all, without position 0": agreement["without_position_0"], **by_layer}
    rows = (
        (
            layer,
            _number(found["pearson"]),
            _interval(found["intervals"]["pearson"]),
            *(_number(found.get(name)) for name in names),
        )
        for layer, found in parts.items()
    )
    yield from _table(("layer", "pearson", "95% interval", *(name.replace("_", " ") for name in names)), rows)


def _facts(examples: Iterable[Mapping[str, Any]]) -> Iterator[str]:
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
    return _table(("id", "prompt", "true", "false", "logit difference"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _escaped(value: object) -> str:
    """Text on one line, as it stands: nothing in it is Markdown or HTML."""
    text = (
        " ".join(cut(str(value), MAX_CELL).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )
    return "".join(f"\\{char}" if char in MARKDOWN else char for char in text)


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
