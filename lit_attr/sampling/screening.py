"""Which contrasts of a run are attributed: all, or those that the model answers right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lit_attr.errors import ArgumentError, ReportedError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.records.screening import Only, Screened
from lit_attr.trainers import AnswersContrasts, OwnsScreening, owner_of_run


def screen(
    contrasts: Sequence[Contrast],
    only: Only,
    trainer: pl.Trainer | None,
    in_batches: Callable[[Sequence[Contrast]], list[list[Contrast]]],
) -> list[Contrast]:
    """The contrasts that a run attributes. All processes call it together, and each screens its share.

    What earlier runs in the folder have screened is not screened again.

    Args:
        contrasts: The contrasts of the run.
        only: Which are attributed.
        trainer: The Trainer of the run.
        in_batches: Cuts contrasts into batches.

    Raises:
        ArgumentError: Nobody answers the contrasts, nobody keeps the answers, or no contrast is left.
    """
    if only == "all":
        return [*contrasts]
    owner: object = owner_of_run(trainer)
    module: object = None if trainer is None else trainer.lightning_module
    if trainer is None or not isinstance(owner, OwnsScreening) or not isinstance(module, AnswersContrasts):
        reason = f"{only} needs an AttributionWriter among trainer.callbacks; add one, or leave it out"
        raise ArgumentError("only", reason, "model")
    # One process reads, so that all see the same.
    known = trainer.strategy.broadcast(owner.read_screened(trainer) if trainer.is_global_zero else {})
    missing = [contrast for contrast in contrasts if contrast.key not in known]
    if missing:
        rank_zero_info(f"One forward pass finds out which of {len(missing)} contrasts are {only}.")
        for row in _screened(in_batches(missing), only, trainer, module):
            known[row.key] = row
        if trainer.is_global_zero:
            owner.keep_screened(trainer, [known[contrast.key] for contrast in contrasts])
    kept = [contrast for contrast in contrasts if known[contrast.key].is_kept]
    if not kept:
        raise ArgumentError("only", f"no contrast of {len(contrasts)} is {only}; give other facts or all", "model")
    return kept


def _screened(
    batches: Sequence[Sequence[Contrast]], only: Only, trainer: pl.Trainer, module: AnswersContrasts
) -> list[Screened]:
    """The answers to all batches, from all processes."""
    rank, processes = trainer.global_rank, trainer.world_size
    own: list[Screened] = []
    failure: Exception | None = None
    try:
        for batch in batches[rank::processes]:
            own += _answered(batch, only, module)
    except Exception as error:
        failure = error
    # All leave where one has failed, or the others would wait for it.
    if not trainer.strategy.reduce_boolean_decision(failure is None):
        raise failure or ReportedError("another process of the run could not answer its contrasts")
    return [row for source in range(processes) for row in trainer.strategy.broadcast(own, src=source)]


def _answered(contrasts: Sequence[Contrast], only: Only, module: AnswersContrasts) -> list[Screened]:
    answers = module.answers(collate_contrasts(contrasts))
    differences_B = answers.logit_true_B - answers.logit_false_B
    rows = zip(contrasts, answers.rank_true_B.tolist(), differences_B.tolist(), strict=True)
    return [
        Screened(*contrast.key, rank, difference, rank == 0 if only == "known" else difference > 0)
        for contrast, rank, difference in rows
    ]
