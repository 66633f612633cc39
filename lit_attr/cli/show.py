"""`lit-attr show`: one fact of a run."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any

from lit_attr.errors import ArgumentError, UserError, shown
from lit_attr.text import never_fail_to_print, print_text


def show(
    out: Path,
    id: str,  # noqa: A002  # the name of the argument
    step: int | None = None,
    component: str | None = None,
    cells: int = 8,
    json: bool = False,
) -> None:
    """Shows one fact: what the model was asked and answered, the map of its scores, its largest cells.

    The map has tokens downwards and layers to the right, red for the true answer and blue for the false one, as
    the heatmaps; without colours, as in a pipe or with NO_COLOR, it has numbers. Exact effects stand beside the
    scores, and the largest neurons below, where the run has them.

    Args:
        out: Output folder of a run.
        id: Id of the fact; a text that could be a number in quotes, as in '"12"'.
        step: Step of the answers, in a run with several. Default: the first at which they differ.
        component: Component of the scores. Default: all that the run has.
        cells: Number of cells that are listed, those with the largest scores or exact effects.
        json: Print the whole record as a line of JSON, with the exact effects as `exact`.
    """
    # Imported here: the help of the program does without NumPy.
    from lit_attr.cli.runs import choose_contrast, read_index
    from lit_attr.evaluation.index.selection import component_of
    from lit_attr.records.reading import record_of, to_dict

    if cells < 0:
        raise ArgumentError("cells", f"{cells} is less than 0")
    index = read_index(out)
    key, others = choose_contrast(index, id, step)
    row = index.columns.row_of[key]
    batch, example = index.example(row)
    components = [*example.scores] if component is None else [component_of(index, component)]
    exact = index.exact(key)
    for name in components if exact is not None else ():
        effects_LT = exact.effects.get(name) if exact is not None else None
        if effects_LT is not None and effects_LT.shape != example.scores[name].sum.shape:
            raise UserError(
                f"{out}: the exact effects of id {shown(str(key[0]))} are of other cells than its scores; move "
                "their file away and run again"
            )
    if json:
        record = {**record_of(batch, example), "exact": None if exact is None else to_dict(exact)}
        # In ASCII, so that no terminal obeys it.
        print(json_format.dumps(record, default=_lists))
        return
    # Imported here: a line of JSON does without.
    from lit_attr.views.terminal.console import new_console
    from lit_attr.views.terminal.fact import ShownFact, draw_fact

    never_fail_to_print()
    console = new_console()
    errors = index.columns.facts[row].error
    fact = ShownFact(example, batch.layers, batch.rule, components, exact, errors)
    for line in draw_fact(console, fact, cells=cells):
        console.print(line)
    if others:
        print_text(f"the fact has the steps {', '.join(map(str, others))} as well; give --step", sys.stderr)


def _lists(values: Any) -> Any:
    """Arrays as JSON has them."""
    return values.tolist()
