"""The run that a command reads: its index, how far it is, and one contrast of it.

Imported within the commands: jsonargparse imports what their own modules import for their types alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lit_attr.errors import ArgumentError, shown
from lit_attr.evaluation.index.identities import close_ids, keys_of
from lit_attr.evaluation.index.runs import IndexedRun, RunIndex
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.records.files import check_path
from lit_attr.text import print_text

MOST_RELATIONS = 12


def read_index(out: Path) -> RunIndex:
    """The index of a run. Files that are damaged are left out, with a line on standard error for each.

    Raises:
        UserError: The folder is not one of a run.
    """
    check_path("out", out)
    index = IndexedRun(out).refresh()
    for problem in index.problems:
        print_text(f"lit-attr: warning: left out: {' '.join(problem.split())}", sys.stderr)
    return index


def progress(index: RunIndex) -> str:
    """How far a run is that has no summary yet; nothing of one that is finished."""
    if index.folder.summary.is_file():
        return "" if index.columns.facts else "the run has no facts"
    done, expected = len(index.columns.facts), index.manifest["data"].get("contrasts")
    of = f" of {expected:,}" if isinstance(expected, int) else ""
    return f"{'; ' if done else ''}the run is not finished: {done:,}{of} contrasts so far"


def count_line(first: int, chosen: int, index: RunIndex) -> str:
    """How many contrasts are chosen, of which the first are listed."""
    total = len(index.columns.facts)
    noun = "fact" if total == 1 else "facts"
    found = f"{chosen:,} {noun}" if chosen == total else f"{chosen:,} of {total:,} {noun}"
    return f"{found}, the first {first:,} are listed; --limit 0 lists all" if first < chosen else found


def relations_line(index: RunIndex) -> str:
    """The relations of a run."""
    found = sorted({relation for relation in index.columns.relations if relation})
    if not found:
        return "the facts have no relations"
    return f"there are {', '.join(found[:MOST_RELATIONS])}{' and others' if len(found) > MOST_RELATIONS else ''}"


def choose_contrast(index: RunIndex, typed: str, step: int | None) -> tuple[ContrastKey, list[int]]:
    """The contrast that is asked for, and the other steps of its fact.

    Args:
        index: The run.
        typed: The id of the fact.
        step: The step; None for the first at which the answers differ.

    Raises:
        ArgumentError: The run does not have it.
    """
    facts = index.columns.facts
    found = keys_of((fact.key for fact in facts), typed)
    if not found:
        close = close_ids((fact.key[0] for fact in facts), typed)
        hint = f"close to it are {', '.join(close)}" if close else "lit-attr facts lists them"
        more = progress(index) if facts else f"; {progress(index)}"
        raise ArgumentError("id", f"the run has no fact {shown(typed)}; {hint}{more}")
    steps = [key[1] for key in found]
    if step is None:
        differ = [key for key in found if not facts[index.columns.row_of[key]].is_trivial]
        chosen = (differ or found)[0]
    elif step in steps:
        chosen = found[steps.index(step)]
    else:
        raise ArgumentError("step", f"the fact has no step {step}; it has {', '.join(map(str, steps))}")
    return chosen, [each for each in steps if each != chosen[1]]
