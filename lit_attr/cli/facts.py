"""`lit-attr facts`: a list of a run's facts."""

from __future__ import annotations

import json as json_format
import sys
from math import isnan
from pathlib import Path

from lit_attr.errors import ArgumentError, shown
from lit_attr.evaluation.index import Sort
from lit_attr.text import never_fail_to_print, print_text

LISTED = 20
# Sorted from the lowest; the others from the largest.
RISING = ("id", "rank_true")


def facts(
    out: Path,
    search: str | None = None,
    relation: str | None = None,
    known: bool | None = None,
    preferred: bool | None = None,
    checked: bool | None = None,
    sort: Sort = "id",
    reverse: bool = False,
    limit: int | None = None,
    component: str | None = None,
    json: bool = False,
) -> None:
    """Lists the facts of a run.

    A line has the fact's id (and its step, in a run with several), the logit difference `diff`, the `rank` of the
    true answer (0: known), the `largest` score with its layer L and the position t of its token (position 0 left
    out), and, where there are exact effects, the `error` of the scores relative to them. The run need not
    be finished.

    Args:
        out: Output folder of a run.
        search: Words that prompt, subject or answers must have, all of them, in upper or lower case.
        relation: Relation of the facts, such as `P36`.
        known: Only known facts, of which the true answer is the most likely token; `false`: only the others.
        preferred: Only facts with a logit difference above 0; `false`: only the others.
        checked: Only facts with exact effects; `false`: only the others.
        sort: Order. `id` and `rank_true` are sorted from the lowest, `logit_diff`, `prob_true`, `largest` (of
            either sign) and `error` from the largest.
        reverse: Reverse the order.
        limit: Number of facts that are listed, 0 for all. Default: 20, with `--json` all.
        component: Component of the scores. Default: the first that the run has.
        json: Print a line of JSON a fact.
    """
    # Imported here: the help of the program does without NumPy.
    from lit_attr.cli.runs import count_line, progress, read_index, relations_line
    from lit_attr.evaluation.index.selection import Selection, chosen_rows, component_of, listed, words_of

    if limit is not None and limit < 0:
        raise ArgumentError("limit", f"{limit} is less than 0")
    index = read_index(out)
    if not index.components:
        print_text(progress(index), sys.stderr)
        return
    component = component_of(index, component)
    has_errors = any(not isnan(error) for error in index.columns.error[component].tolist())
    if relation is not None and relation not in index.columns.relations:
        raise ArgumentError("relation", f"no fact has {shown(relation)}; {relations_line(index)}")
    if sort == "error" and not has_errors:
        raise ArgumentError("sort", "no fact has exact effects; sort by another")
    words = words_of(search or "")
    selection = Selection(
        words=words,
        relation=relation,
        known=known,
        preferred=preferred,
        checked=checked,
        sort=sort,
        descending=(sort not in RISING) != reverse,
    )
    rows = chosen_rows(index, selection, component).tolist()
    if limit is None:
        limit = 0 if json else LISTED
    chosen = [listed(index, component, row) for row in (rows[:limit] if limit else rows)]
    if json:
        for each in chosen:
            # In ASCII, so that no terminal obeys it.
            print(json_format.dumps(each))
        return
    if chosen:
        # Imported here: a line of JSON does without.
        from lit_attr.views.terminal.console import new_console
        from lit_attr.views.terminal.facts import draw_facts

        never_fail_to_print()
        console = new_console()
        lines = draw_facts(
            console,
            chosen,
            words=words,
            steps=len({fact.key[0] for fact in index.columns.facts}) < len(index.columns.facts),
            errors=any(each["error"] is not None for each in chosen),
            relations=len({*index.columns.relations}) > 1,
        )
        for line in lines:
            console.print(line)
    print_text(f"{count_line(len(chosen), len(rows), index)}{progress(index)}", sys.stderr)
