"""The Lightning data module: CounterFact facts from the hub, a file or a data set, as batches of contrasts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import ArgumentError, arguments_of, warn_about
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.buckets import RankSampler, cut_by_length, in_batches
from lit_attr.facts.cells import printable
from lit_attr.facts.contrasts import Contrast, Step
from lit_attr.facts.rows import Reading, Rejected
from lit_attr.facts.seams import AUTO
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.table.contrast_table import ContrastTable, Rows
from lit_attr.facts.table.parts import Making
from lit_attr.facts.table.preparing import Caching, Source, prepare
from lit_attr.facts.templates import parse_template
from lit_attr.models.limits import ModelLimits
from lit_attr.models.loading import DEMO_MODEL, load_tokenizer
from lit_attr.records.screening import Only
from lit_attr.records.state import RunState
from lit_attr.sampling.screening import screen
from lit_attr.sampling.work import (
    Work,
    bounds_of_batches,
    collate_work,
    comparisons_work,
    other_facts,
    pilot_rows,
    pilot_work,
    scores_work,
)
from lit_attr.text import counted
from lit_attr.trainers import run_state

# The ablation that takes donors.
RESAMPLE = "resample"


class DataRequirements(NamedTuple):
    """What a module asks of the data that it attributes.

    Attributes:
        step: The step at which answers are compared, where the data module sets none.
        tokenizer: The model's tokenizer, or its name or folder, where the data module sets none.
        gguf_file: GGUF file, in the folder or repository that the tokenizer names, which has the tokenizer.
        revision: Revision of that tokenizer on the hub.
        trust_remote_code: Whether code that comes with that tokenizer may run.
        limits: How many positions and token embeddings the model has.
        verify: How many contrasts of the run's random order get exact effects.
        sample_seed: Seed of that order.
        pilot: How many contrasts of the order are the pilot of an adaptive run, before those.
        ablation: By what exact effects replace a write: `zero`, `mean`, or `resample`, for which each contrast
            gets a donor. The choice of donors depends on `sample_seed`.
        averaged: Over how many contrasts of the order mean writes are taken.
        only: Which contrasts are attributed, by the model's answers.
    """

    step: Step | None = None
    tokenizer: PreTrainedTokenizerBase | str | None = None
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    limits: ModelLimits = ModelLimits(None, None)
    verify: int = 0
    sample_seed: int = 0
    pilot: int = 0
    ablation: str = "zero"
    averaged: int = 0
    only: Only = "all"


@runtime_checkable
class HasDataRequirements(Protocol):
    """A module that knows what data it needs."""

    def data_requirements(self) -> DataRequirements:
        """What the module asks of its data. Needs no weights."""


class CounterfactDataModule(pl.LightningDataModule):
    """CounterFact-style facts as batches of contrasts of similar length.

    Rows have the columns of `NeelNanda/counterfact-tracing`, or are nested as in the raw CounterFact file. A row
    that cannot be used is left out and listed, with the reason, in `rejected`.

    The pilot of an adaptive run comes first, one contrast a batch: the first contrasts in a random order of the
    whole run. Batches with scores to compute follow, the longest first. Then come the contrasts that are verified,
    one a batch, for their exact effects: those after the pilot in the same order, so that they are the same with
    any number of processes.

    Args:
        source: `sample` (the facts of the package), a hub name, or a .json, .jsonl, .csv or .parquet file (.gz or
            not). Also a folder that `save_to_disk` wrote, or the rows: any iterable of them, such as a
            `datasets.Dataset`, or a pandas `DataFrame`.
        tokenizer: A fast tokenizer, or the name or folder of one. Default: the module's.
        step: `divergence` or `all`, see `build_contrasts`. Default: the module's.
        split: Split of a data set that has several. Default: the only one, or of a hub data set `train`.
        where: Keep only rows of this `relation_id`, or of these.
        limit: Keep only the first so many rows.
        columns: Column names that differ: ours to yours, such as `{target_true: answer}`.
        template: A prompt template such as `Q: {prompt} A:` in place of each row's prompt. Any column can stand in
            braces, by our name or yours; a relation's `{}` is filled with the subject, which the prompt has to
            contain.
        batch_size: Maximum number of rows in a batch. Default: bounded by `max_tokens` alone.
        max_tokens: Maximum number of tokens in a batch, padding included. Default: none with `batch_size`, else
            1,024 on a CPU, 4,096 elsewhere. The rows are then at most a sixth as many.
        num_workers: Loader processes. Rows are tokenised beforehand, so 0 is fast.
        strict: Stop at the first row that cannot be used.
        add_bos_token: Whether the beginning-of-sequence token precedes each prompt, see `build_contrasts`.
            Default: the tokenizer's behaviour.
        answer_separator: What to put between prompt and answer where the row has no white space; empty for
            nothing. Default: `auto`, a space in most scripts. It is none where the characters at the seam need
            none (Chinese, Japanese, Thai, Lao, Khmer, Burmese; beside a special token; after an opening bracket).
        revision: Branch, tag or commit of a hub data set. Default: its main branch.
        donor_column: For resample ablation, the column with the id of a row's donor, whose writes replace its own.
            The donor may be any row of the source with as many tokens before, in and after its subject. Default:
            as `with_donors` chooses. That is a row with the same relation and template and another true answer.
        cache_dir: Where 10,000 rows and more are kept once they are tokenised. All processes of the machine and
            later runs read them there. Default: the cache of `datasets`. `HF_DATASETS_CACHE` names that folder.
        num_proc: How many processes tokenise them. Default: as many as there are cores, at most 16.
        keep_in_memory: Keep them in the memory of each process instead.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Iterable[Mapping[str, Any]] = SAMPLE,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        step: Step | None = None,
        split: str | None = None,
        where: str | list[str] | None = None,
        limit: int | None = None,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        num_workers: int = 0,
        strict: bool = False,
        add_bos_token: bool | None = None,
        answer_separator: str = AUTO,
        revision: str | None = None,
        donor_column: str | None = None,
        cache_dir: str | None = None,
        num_proc: int | None = None,
        keep_in_memory: bool = False,
    ) -> None:
        super().__init__()
        # With fewer batches than processes some processes have none, which is no error.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("limit", limit, 1),
            ("max_tokens", max_tokens, 1),
            ("num_workers", num_workers, 0),
            ("num_proc", num_proc, 1),
        ):
            if value is not None and value < least:
                raise ArgumentError(name, f"{value} is less than {least}; give {least} or more", "data")
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.tokenizer = tokenizer
        self.step = step
        self.split = split
        self.relation_ids = [where] if isinstance(where, str) else where
        self.limit = limit
        self.columns = columns
        self.template = template
        with arguments_of("data"):
            self._template = None if template is None else parse_template(template)
        self.max_rows = batch_size
        self.max_tokens = max_tokens
        self.num_workers = num_workers
        self.strict = strict
        self.add_bos_token = add_bos_token
        self.answer_separator = answer_separator
        self.revision = revision
        self.donor_column = donor_column
        self.caching = Caching(cache_dir, keep_in_memory, num_proc)
        self.table = ContrastTable([])
        self.rejected: list[Rejected] = []
        self.requirements = DataRequirements()
        # With the possible donors, or without.
        self._sources: dict[bool, Source] = {}
        self._made_for: DataRequirements | None = None

    def setup(self, stage: str | None = None) -> None:
        """Reads the rows, once, and tokenises them, once for each set of requirements.

        Raises:
            UserError: The source or the tokenizer cannot be used, or no row can.
        """
        module: object = self.trainer.lightning_module if self.trainer is not None else None
        if isinstance(module, HasDataRequirements):
            requirements = module.data_requirements()
        else:
            # Somebody else's module: `tokenizer` is the name by which Lightning projects usually keep theirs.
            default = DEMO_MODEL if module is None else None
            requirements = DataRequirements(tokenizer=getattr(module, "tokenizer", default))
        self.make_contrasts(requirements)

    def make_contrasts(self, requirements: DataRequirements) -> None:
        """What `setup` does, without a Trainer.

        Args:
            requirements: What the module that gets the batches asks for.

        Raises:
            ArgumentError: The source or the tokenizer cannot be used, or no row can.
        """
        has_donors = requirements.ablation == RESAMPLE
        if has_donors not in self._sources:
            with arguments_of("data", {"rows": "source"}):
                self._sources[has_donors] = self._identify(has_donors)
        if requirements == self._made_for:
            return
        tokenizer = self._load_tokenizer(requirements)
        self.requirements = requirements
        making = Making(
            tokenizer,
            step=self.step or requirements.step or "divergence",
            add_bos_token=self.add_bos_token,
            max_tokens=requirements.limits.positions,
            seed=requirements.sample_seed,
            has_donors=has_donors,
            by_name=has_donors and self.donor_column is not None,
        )
        with arguments_of("data", {"rows": "source"}):
            made = prepare(self._sources[has_donors], making, self.caching, rank_zero_info)
            self.table, self.rejected = made.contrasts, made.rejected
            requirements.limits.check_vocabulary(tokenizer)
            if self.donor_column is not None and not has_donors:
                reason = f"{requirements.ablation} ablation takes no donors, so it is ignored"
                warn_about("donor_column", f"{reason}; {RESAMPLE} ablation takes them")
            self._check_rejected(self.rejected)
        if made.spaces:
            rank_zero_info(f"A leading space was added to the answers of {counted(made.spaces, 'fact')}.")
        self._made_for = requirements

    @property
    def contrasts(self) -> Sequence[Contrast]:
        """The contrasts in the order of the source, each made when it is asked for. Needs `setup`."""
        return self.table

    @contrasts.setter
    def contrasts(self, contrasts: Sequence[Contrast]) -> None:
        self.table = contrasts if isinstance(contrasts, ContrastTable) else ContrastTable.of(contrasts)

    def predict_dataloader(self) -> DataLoader[ContrastBatch]:
        """This process's share of the batches that no earlier run has completed."""
        state = run_state(self.trainer)
        trainer, table, requirements = self.trainer, self.table, self.requirements
        rows = screen(table, requirements.only, trainer, self._cut)
        order = table.random_order(requirements.sample_seed)
        order = order[np.isin(order, rows)]
        processes = trainer.world_size if trainer is not None else 1
        pilot = self._pilot(state, order)
        is_done_N, is_pilot_N = np.zeros((2, len(table)), dtype=np.bool_)
        is_pilot_N[pilot] = True
        work: list[Work] = []
        if state is not None:
            state.averaged = table.at(order[: requirements.averaged])
            state.check_facts(table.at(other_facts(table, state)))
            is_done_N = state.done.mask(table.keys_N2) | table.mask(state.refused)
            work += pilot_work(table, pilot, state, processes)
        # Cut from all contrasts, whatever is done.
        work += scores_work(table, self._cut(rows), is_done_N, is_pilot_N)
        work += comparisons_work(table, order, requirements.verify, state, processes)
        rank = trainer.global_rank if trainer is not None else 0
        places_N = np.full(len(table), -1, dtype=np.int32)
        places_N[order] = np.arange(len(order), dtype=np.int32)
        return DataLoader(
            work,  # type: ignore[arg-type]  # a map-style data set
            batch_size=None,  # its items are batches already
            sampler=RankSampler(work, rank=rank, world_size=processes),
            collate_fn=partial(collate_work, table, places_N),
            num_workers=self.num_workers,
            # From there batches are copied while the one before is computed.
            pin_memory=self._device is not None and self._device.type == "cuda",
        )

    def in_batches(self, contrasts: Sequence[Contrast], device: torch.device | None) -> list[list[Contrast]]:
        """Cuts contrasts into batches of similar length within this data module's bounds.

        Args:
            contrasts: The contrasts. Needs `make_contrasts`.
            device: The device that the batches are for, which sets the default bounds.
        """
        max_rows, max_tokens = self._bounds(device)
        width_class = self.requirements.limits.width_class
        return in_batches(contrasts, max_rows=max_rows, max_tokens=max_tokens, width_class=width_class)

    def identity(self) -> dict[str, Any]:
        """Everything about the data that changes a number, in JSON types. Needs `setup`."""
        max_rows, max_tokens = self._bounds(self._device)
        return {
            "step": self.step or self.requirements.step or "divergence",
            # A path may have bytes that no text in JSON has.
            "source": printable(self.source) if isinstance(self.source, str) else type(self.source).__name__,
            "split": self.split,
            "revision": self.revision,
            "where": self.relation_ids,
            "limit": self.limit,
            "template": self.template,
            "add_bos_token": self.add_bos_token,
            "answer_separator": self.answer_separator,
            "donor_column": self.donor_column if self.requirements.ablation == RESAMPLE else None,
            "batch_size": max_rows,
            "max_tokens": max_tokens,
            "contrasts": len(self.table),
            "content": self.content(),
        }

    def content(self, count: int | None = None) -> str:
        """A hash of the first `count` contrasts, or of all: what they ask of the model, in their order."""
        return self.table.content(count)

    def _identify(self, has_donors: bool) -> Source:
        if self._sources and isinstance(self.source, Iterator):
            reason = "its rows can be read once, and a run with another ablation has read them"
            raise ArgumentError("source", f"{reason}; give a list of them")
        reading = Reading(
            relation_ids=self.relation_ids,
            limit=self.limit,
            columns=self.columns or {},
            template=self._template,
            answer_separator=self.answer_separator,
            with_donors=has_donors,
            donor_column=self.donor_column,
        )
        opened = partial(open_rows, self.source, split=self.split, revision=self.revision)
        return Source.of(self.source, opened, reading, self.caching)

    def _load_tokenizer(self, requirements: DataRequirements) -> PreTrainedTokenizerBase:
        tokenizer = self.tokenizer or requirements.tokenizer
        if tokenizer is None:
            raise ArgumentError("tokenizer", "neither the module nor the data module has one; give one", "data")
        if not isinstance(tokenizer, str):
            return tokenizer
        if self.tokenizer is not None:
            with arguments_of("data"):
                return load_tokenizer(tokenizer)
        with arguments_of("model", {"tokenizer": "model_name"}):
            return load_tokenizer(
                tokenizer,
                gguf_file=requirements.gguf_file,
                revision=requirements.revision,
                trust_remote_code=requirements.trust_remote_code,
            )

    def _pilot(self, state: RunState | None, order: Rows) -> Rows:
        """The rows of an adaptive run's pilot. The state of the run gets the contrasts."""
        count = self.requirements.pilot
        if not count or state is None:
            return order[:0]
        if count > len(order):
            rank_zero_info(f"The pilot is all {len(order)} contrasts: every score is an exact effect.")
        pilot = pilot_rows(self.table, order, count, state)
        state.pilot = self.table.at(pilot)
        return pilot

    def _cut(self, rows: Rows) -> list[Rows]:
        """Cuts rows of the table, in their order, into batches."""
        max_rows, max_tokens = self._bounds(self._device)
        bounds = cut_by_length(
            self.table.lengths_N[rows],
            max_rows=max_rows,
            max_padded_tokens=max_tokens,
            width_class=self.requirements.limits.width_class,
        )
        return [rows[begin:end] for begin, end in pairwise(bounds)]

    @property
    def _device(self) -> torch.device | None:
        return self.trainer.strategy.root_device if self.trainer is not None else None

    def _bounds(self, device: torch.device | None) -> tuple[int | None, int | None]:
        """Maximum rows and tokens of a batch."""
        return bounds_of_batches(self.max_rows, self.max_tokens, device)

    def _check_rejected(self, rejected: list[Rejected]) -> None:
        if not rejected or (self.table and not self.strict):
            return
        first = min(rejected)
        row = f"row {first.row} (id {first.id!r}): {first.reason}"
        if self.table:
            raise ArgumentError("source", f"{row}; fix the row, or set strict to false to leave it out")
        raise ArgumentError("source", f"no row of {len(rejected)} can be used; the first, {row}; fix the row")
