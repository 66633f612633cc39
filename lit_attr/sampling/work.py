"""The work of a run, one item a batch: the pilot's exact effects, the scores, and the sample's exact effects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from lit_attr.facts.contrasts import Contrast, ContrastKey
from lit_attr.records.state import RunState


class Work(NamedTuple):
    """The contrasts of one batch.

    Attributes:
        contrasts: The contrasts.
        comparison: Set where the exact effects of one contrast are computed: which comparison of its process this
            is, from 1, and of how many.
        is_pilot: Whether the contrast is of the pilot.
        width: The least number of tokens that the batch is padded to.
    """

    contrasts: list[Contrast]
    comparison: tuple[int, int] | None = None
    is_pilot: bool = False
    width: int = 0


def pilot_keys(order: Sequence[ContrastKey], count: int, state: RunState) -> list[ContrastKey]:
    """The contrasts of an adaptive run's pilot.

    Args:
        order: The contrasts of the run in its random order.
        count: How many contrasts the pilot has.
        state: The state of the run.
    """
    # An interrupted run that is extended keeps the pilot that it has begun.
    begun = [key for key in order if key in state.pilots]
    if state.has_error_model:
        # An error model never changes, also when the run is extended.
        return begun
    return (begun + [key for key in order if key not in state.pilots])[:count]


def pilot_work(pilot: Sequence[Contrast], state: RunState, processes: int) -> list[Work]:
    """The contrasts of the pilot that lack scores or exact effects.

    Args:
        pilot: The contrasts of the pilot.
        state: The state of the run.
        processes: How many processes the run has.
    """
    complete = {key for key in state.exact if key in state.pilots and state.is_done(key)}
    return _one_by_one([contrast for contrast in pilot if contrast.key not in complete], processes, is_pilot=True)


def scores_work(
    batches: Sequence[Sequence[Contrast]], done: Collection[ContrastKey], pilot: Collection[ContrastKey]
) -> list[Work]:
    """The batches of a run with the contrasts that are not done.

    The pilot's contrasts stay in their batches: the last digits of the others depend on the rows and the width
    that a batch has, and are those of a run without a pilot.

    Args:
        batches: The batches of all contrasts, so that a resumed run has those of an uninterrupted one.
        done: The contrasts that are done.
        pilot: The pilot's contrasts.
    """
    found = []
    for batch in batches:
        left = [contrast for contrast in batch if contrast.key not in done or contrast.key in pilot]
        if any(contrast.key not in pilot for contrast in left):
            found.append(Work(left, width=max(len(contrast.token_ids) for contrast in batch)))
    return found


def comparisons_work(
    contrasts: Sequence[Contrast],
    order: Sequence[ContrastKey],
    verify: int,
    state: RunState | None,
    processes: int,
) -> list[Work]:
    """The contrasts of the run's sample that have no exact effects yet. Sets the state's spares.

    Args:
        contrasts: The contrasts of the run.
        order: Their random order.
        verify: How many contrasts the sample has. The pilot's are not in it.
        state: The state of the run; None where nothing is written.
        processes: How many processes the run has.
    """
    if not verify:
        return []
    by_key = {contrast.key: contrast for contrast in contrasts}
    known = RunState() if state is None else state
    pilot = {*known.pilots, *(contrast.key for contrast in known.pilot)}
    # A contrast that came out not finite is replaced by the next one of the order.
    usable = [
        (place, by_key[key])
        for place, key in enumerate(order)
        if key not in known.refused and known.exact.get(key) is not False and key not in pilot
    ]
    if state is not None:
        state.spares = usable[verify:]
    missing = [contrast for _, contrast in usable[:verify] if contrast.key not in known.exact]
    return _one_by_one(missing, processes)


def _one_by_one(contrasts: Sequence[Contrast], processes: int, *, is_pilot: bool = False) -> list[Work]:
    """One contrast a batch, numbered for each process."""
    counts = [len(range(rank, len(contrasts), processes)) for rank in range(processes)]
    return [
        Work([contrast], (at // processes + 1, counts[at % processes]), is_pilot)
        for at, contrast in enumerate(contrasts)
    ]
