"""One fact on a terminal: what was asked and answered, its maps, its largest cells, its neurons.

Axes: L layers, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from lit_attr.attribution.catalogue import rule_title
from lit_attr.records.schema import ExactRecord, Example
from lit_attr.views.terminal.console import sign_style, table_lines, text_of
from lit_attr.views.terminal.maps import EXACT, Map, draw_maps

MOST_NEURONS = 10


class ShownFact(NamedTuple):
    """A fact as it is shown.

    Attributes:
        example: Its record.
        layers: The layers of the scores.
        rule: The rule that computed them.
        components: The components that are shown.
        exact: Its exact effects; None where there are none.
        errors: By component, how far the scores are from them, see `relative_error`; NaN where that is unknown.
    """

    example: Example
    layers: Sequence[int]
    rule: str
    components: Sequence[str]
    exact: ExactRecord | None
    errors: Mapping[str, float]

    def effects_LT(self, component: str) -> NDArray[np.float64] | None:
        """The exact effects of a component; None where there are none."""
        if self.exact is None or self.exact.refused is not None:
            return None
        return self.exact.effects.get(component)

    def is_exact_LT(self, component: str) -> NDArray[np.bool_] | None:
        """The cells whose score is the exact effect; None in a run that is not adaptive."""
        if self.example.is_exact is UNSET:
            return None
        return np.array(self.example.is_exact[component], dtype=np.bool_)


def draw_fact(console: Console, fact: ShownFact, *, cells: int) -> Iterator[Text]:
    """Draws a fact.

    Args:
        console: Where it is printed.
        fact: The fact.
        cells: How many of its largest cells are listed.

    Yields:
        The lines.
    """
    example = fact.example
    start, stop = example.subject_span
    yield from _texts(fact)
    yield Text()
    rows = []
    for component in fact.components:
        name = f"{component}: " if len(fact.components) > 1 else ""
        is_exact_LT, effects_LT = fact.is_exact_LT(component), fact.effects_LT(component)
        rows.append([Map(f"{name}scores", example.scores[component].sum, is_exact_LT)])
        # Of the pilot of an adaptive run, the scores are the effects.
        if effects_LT is not None and (is_exact_LT is None or not is_exact_LT.all()):
            rows[-1].append(Map(f"{name}exact effects", effects_LT))
    yield from draw_maps(console, rows, layers=fact.layers, tokens=example.tokens, subject_span=(start, stop))
    yield from _exact_lines(fact)
    if cells:
        yield Text()
        yield from _cell_lines(console, fact, cells)
    if example.neurons is not UNSET:
        yield Text()
        yield from _neuron_lines(console, fact)


def largest_cells(fact: ShownFact, count: int) -> list[tuple[str, int, int]]:
    """The cells with the largest score or exact effect of either sign, as (component, row of the layer, token).

    Position 0, most often an attention sink, is left out, unless there is no other token.
    """
    first = 1 if len(fact.example.tokens) > 1 else 0
    found = []
    for component in fact.components:
        sizes_LT = np.abs(fact.example.scores[component].sum)
        if (effects_LT := fact.effects_LT(component)) is not None:
            sizes_LT = np.maximum(sizes_LT, np.abs(effects_LT))
        for place in np.argsort(-sizes_LT[:, first:], axis=None, kind="stable")[:count].tolist():
            row, token = divmod(place, sizes_LT.shape[1] - first)
            found.append((-float(sizes_LT[row, token + first]), component, row, token + first))
    return [
        (component, row, token) for _, component, row, token in sorted(found, key=lambda cell: cell[0])[:count]
    ]


def _texts(fact: ShownFact) -> Iterator[Text]:
    """The prompt, the answers, and what the model makes of them."""
    example = fact.example
    true, false = (text_of(text.strip()) for text in (example.target_true, example.target_false))
    yield Text.assemble((text_of(example.prompt), "bold"), " → ", (true, "bold red"), " / ", (false, "bold blue"))
    about = [f"id {text_of(str(example.id))}", f"subject {text_of(example.subject)}"]
    if example.relation_id:
        about.append(f"relation {text_of(example.relation_id)}")
    if example.step:
        about.append(f"step {example.step}: token {example.step + 1} of the answers")
    if example.donor_id is not UNSET:
        about.append(f"donor {text_of(str(example.donor_id))}")
    yield Text(" · ".join(about))
    tokens = [
        f"{text_of(text)!s} {logit:.2f} (probability {probability:.2g})"
        for text, logit, probability in (
            (example.true_token.strip(), example.logit_true, example.prob_true),
            (example.false_token.strip(), example.logit_false, example.prob_false),
        )
    ]
    yield Text(f"logit difference {example.logit_diff:+.3f}: {' - '.join(tokens)}")
    more = "token is" if example.rank_true == 1 else "tokens are"
    known = "known" if example.rank_true == 0 else f"not known: {example.rank_true:,} {more} more likely"
    yield Text(f"rank {example.rank_true}, {known} · {rule_title(fact.rule)} of {', '.join(fact.components)}")


def _exact_lines(fact: ShownFact) -> Iterator[Text]:
    """How the exact effects were computed, and how far the scores are from them."""
    exact = fact.exact
    if exact is None:
        return
    if exact.refused is not None:
        yield Text(f"no exact effects: {text_of(exact.refused)}")
        return
    errors = [
        f"{error:.2f}" + (f" ({component})" if len(fact.components) > 1 else "")
        for component, error in fact.errors.items()
        if component in fact.components and not np.isnan(error)
    ]
    line = f"exact effects: {exact.ablation} ablation, noise below {exact.resolution:.1g} logits"
    if errors:
        line += f"; error of the scores relative to them, without position 0: {', '.join(errors)}"
    yield Text(line + ("; of the pilot" if exact.is_pilot else ""), "dim")


def _cell_lines(console: Console, fact: ShownFact, count: int) -> list[Text]:
    example = fact.example
    has_effects = any(fact.effects_LT(component) is not None for component in fact.components)
    optional = {"component": len(fact.components) > 1, "exact": has_effects}
    head = ["component", "layer", "position", "score", "exact", "role", "token"]
    head = [name for name in head if optional.get(name, True)]
    rows = []
    for component, row, token in largest_cells(fact, count):
        effects_LT, is_exact_LT = fact.effects_LT(component), fact.is_exact_LT(component)
        mark = EXACT if is_exact_LT is not None and is_exact_LT[row, token] else ""
        cell = {
            "component": Text(text_of(component)),
            "layer": Text(str(fact.layers[row])),
            "position": Text(str(token)),
            "score": _number(float(example.scores[component].sum[row, token]), mark),
            "exact": Text() if effects_LT is None else _number(float(effects_LT[row, token])),
            "role": Text(example.roles[token]),
            "token": Text(text_of(example.tokens[token])),
        }
        rows.append([cell[name] for name in head])
    right = frozenset({"layer", "position", "score", "exact"})
    title = Text("largest cells, without position 0" if len(example.tokens) > 1 else "largest cells", "bold")
    return [
        title,
        *table_lines(head, rows, width=console.width, right=right, flexible=(("token", 8), ("component", 8))),
    ]


def _neuron_lines(console: Console, fact: ShownFact) -> list[Text]:
    example = fact.example
    assert example.neurons is not UNSET
    rows = [
        [
            Text(str(each.layer)),
            Text(str(each.neuron)),
            Text(str(each.token)),
            _number(each.score),
            Text(text_of(example.tokens[each.token])),
        ]
        for each in sorted(example.neurons, key=lambda each: -abs(each.score))[:MOST_NEURONS]
    ]
    head = ["layer", "neuron", "position", "score", "token"]
    right = frozenset(head[:-1])
    title = Text("neurons with the largest scores", "bold")
    return [title, *table_lines(head, rows, width=console.width, right=right, flexible=(("token", 8),))]


def _number(value: float, mark: str = "") -> Text:
    return Text(f"{value:+.4f}{mark}" if value else f"{value:.4f}{mark}", sign_style(value))
