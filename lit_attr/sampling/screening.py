"""Which contrasts of a run are attributed: all, or those that the model answers right.

Axes: N rows of the run's table of contrasts, M some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from lit_attr.errors import ArgumentError, ReportedError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.table.contrast_table import ContrastTable, Rows
from lit_attr.facts.table.keys import KeyIndex, hash_keys
from lit_attr.records.screening import Answered, Only, Screened
from lit_attr.trainers import AnswersContrasts, OwnsScreening, await_others, owner_of_run


def screen(
    table: ContrastTable, only: Only, trainer: pl.Trainer | None, in_batches: Callable[[Rows], Sequence[Rows]]
) -> Rows:
    """The rows of the contrasts that a run attributes. All processes call it together, and each screens its share.

    What earlier runs in the folder have screened is not screened again.

    Args:
        table: The contrasts of the run.
        only: Which are attributed.
        trainer: The Trainer of the run.
        in_batches: Cuts rows into batches.

    Raises:
        ArgumentError: Nobody answers the contrasts, nobody keeps the answers, or no contrast is left.
    """
    rows_N = np.arange(len(table), dtype=np.int32)
    if only == "all":
        return rows_N
    owner: object = owner_of_run(trainer)
    module: object = None if trainer is None else trainer.lightning_module
    if trainer is None or not isinstance(owner, OwnsScreening) or not isinstance(module, AnswersContrasts):
        reason = f"{only} needs an AttributionWriter among trainer.callbacks; add one, or leave it out"
        raise ArgumentError("only", reason, "model")
    # One process reads, so that all see the same.
    hashes_M2, before = trainer.strategy.broadcast(
        owner.read_screened(trainer) if trainer.is_global_zero else (hash_keys([]), _answered([], [], only))
    )
    places_N = KeyIndex(hashes_M2).find(table.keys_N2)
    known = Answered(np.zeros(len(table), np.int64), np.zeros(len(table)), np.zeros(len(table), np.bool_))
    for every, some in zip(known, before, strict=True):
        every[places_N >= 0] = some[places_N[places_N >= 0]]
    missing = rows_N[places_N < 0]
    if len(missing):
        rank_zero_info(f"One forward pass finds out which of {len(missing)} contrasts are {only}.")
        for rows, answered in _screened(table, in_batches(missing), only, trainer, module):
            for every, some in zip(known, answered, strict=True):
                every[rows] = some
        if trainer.is_global_zero:
            owner.keep_screened(trainer, _in_order(table, known))
    kept = rows_N[known.is_kept_N]
    if not len(kept):
        raise ArgumentError("only", f"no contrast of {len(table)} is {only}; give other facts or all", "model")
    return kept


def _screened(
    table: ContrastTable, batches: Sequence[Rows], only: Only, trainer: pl.Trainer, module: AnswersContrasts
) -> list[tuple[Rows, Answered]]:
    """The answers to all batches, from all processes."""
    rank, processes = trainer.global_rank, trainer.world_size
    ranks: list[int] = []
    differences: list[float] = []
    own = batches[rank::processes]
    failure: Exception | None = None
    try:
        for rows in own:
            answers = module.answers(collate_contrasts(table.at(rows)))
            ranks += answers.rank_true_B.tolist()
            differences += (answers.logit_true_B - answers.logit_false_B).tolist()
    except Exception as error:
        failure = error
    await_others(trainer)
    # All leave where one has failed, or the others would wait for it.
    if not trainer.strategy.reduce_boolean_decision(failure is None):
        raise failure or ReportedError("another process of the run could not answer its contrasts")
    found = np.concatenate([*own, np.zeros(0, np.int32)]), _answered(ranks, differences, only)
    return [trainer.strategy.broadcast(found, src=source) for source in range(processes)]


def _answered(ranks: Sequence[int], differences: Sequence[float], only: Only) -> Answered:
    ranks_M, differences_M = np.array(ranks, np.int64), np.array(differences, np.float64)
    return Answered(ranks_M, differences_M, ranks_M == 0 if only == "known" else differences_M > 0)


def _in_order(table: ContrastTable, known: Answered) -> Iterator[Screened]:
    """The screened contrasts in the order of the source."""
    answers = zip(*(each[table.rows_N].tolist() for each in known), strict=True)
    return (Screened(*key, *answer) for key, answer in zip(table.keys(), answers, strict=True))
