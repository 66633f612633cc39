"""The Lightning data module: CounterFact facts from the hub, a file or a data set, as batches of contrasts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import UserError
from lit_attr.facts.buckets import RankSampler, bucket_by_length
from lit_attr.facts.contrasts import Contrast, ContrastBatch, ContrastKey, Step, build_contrasts, collate_contrasts
from lit_attr.facts.rows import FactTable, Rejected, read_facts
from lit_attr.facts.sources import SAMPLE, open_rows
from lit_attr.facts.templates import parse_template
from lit_attr.models.loading import DEMO_MODEL, load_tokenizer

MAX_TOKENS_CPU = 1024
MAX_TOKENS_GPU = 4096
# What a row takes apart from its tokens, the logits of a whole vocabulary, is as much as some tokens take.
TOKENS_OF_A_ROW = 6


class CounterfactDataModule(pl.LightningDataModule):
    """CounterFact-style facts as batches of contrasts of like length.

    Rows are in the columns of `NeelNanda/counterfact-tracing`, or nested as in the raw CounterFact file. A row
    that cannot be used is kept out, with the reason, in `rejected`.

    Args:
        source: `sample` (the shipped facts), a hub name, a .json, .jsonl, .csv or .parquet file (.gz or not), or
            any iterable of rows, such as a `datasets.Dataset`.
        tokenizer: A fast tokenizer, or the name or folder of one. Default: that of the module it runs with.
        step: `divergence` or `all`, see `build_contrasts`. Default: that of the module it runs with.
        split: Split of a hub data set. Default: the only one, or `train`.
        where: Take only rows of this `relation_id`, or of these.
        limit: Take only so many rows, the first.
        columns: Column names that differ: ours to yours, such as `{target_true: answer}`.
        template: A prompt of your own, such as `Q: {prompt} A:`, in place of each row's; any column can stand in
            braces, by our name or yours, and a relation's `{}` is filled with the subject, which has to be in it.
        batch_size: Rows of a batch, at most. Default: no bound but `max_tokens`.
        max_tokens: Tokens of a batch with its padding, at most. Default: no bound but `batch_size`; without that,
            1,024 on a CPU and 4,096 elsewhere, and a sixth as many rows.
        num_workers: Loader processes. Rows are tokenised beforehand, so 0 is fast.
        strict: Stop at the first row that cannot be used.
        add_bos_token: Whether the beginning-of-sequence token goes before each prompt, see `build_contrasts`.
            Default: as the tokenizer does it.
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
    ) -> None:
        super().__init__()
        # Fewer batches than processes: some get none, and that is no error.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("limit", limit, 1),
            ("max_tokens", max_tokens, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"data.{name}: {value} is less than {least}")
        self.source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.tokenizer = tokenizer
        self.step = step
        self.split = split
        self.relation_ids = [where] if isinstance(where, str) else where
        self.limit = limit
        self.columns = columns
        self.template = template
        self._template = None if template is None else parse_template(template)
        self.max_rows = batch_size
        self.max_tokens = max_tokens
        self.num_workers = num_workers
        self.strict = strict
        self.add_bos_token = add_bos_token
        self.contrasts: list[Contrast] = []
        self.rejected: list[Rejected] = []
        # A writer that knows an earlier run's output sets this. It is asked when the model is there, before
        # batches are made.
        self.find_done: Callable[[], Collection[ContrastKey]] | None = None
        self._table: FactTable | None = None
        self._made_for: tuple[object, ...] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Reads the rows, once, and makes contrasts of them, once for each module it runs with.

        Raises:
            UserError: The source or the tokenizer cannot be used, or no row can.
        """
        self.make_contrasts(self.trainer.lightning_module if self.trainer is not None else None)

    def make_contrasts(self, module: object | None) -> None:
        """What `setup` does, without a Trainer.

        Args:
            module: What it runs with: a module that names its tokenizer and knows its model's bounds, another one,
                or none.

        Raises:
            UserError: The source or the tokenizer cannot be used, or no row can.
        """
        if self._table is None:
            rows = open_rows(self.source, split=self.split)
            table = read_facts(
                rows,
                relation_ids=self.relation_ids,
                limit=self.limit,
                columns=self.columns,
                template=self._template,
            )
            if table.spaces_added:
                rank_zero_info(f"Answers without a leading space got one, in {table.spaces_added} of the facts.")
            self._table = table
        step = self.step or getattr(module, "step", None) or "divergence"
        source = self.tokenizer or getattr(module, "tokenizer", DEMO_MODEL if module is None else None)
        if source is None:
            raise UserError(f"data.tokenizer: {type(module).__name__} names none to take; give one")
        revision = getattr(module, "revision", None) if self.tokenizer is None else None
        made_for = (module, step, source, revision)
        if made_for == self._made_for:
            return
        tokenizer: PreTrainedTokenizerBase | str = source
        if isinstance(tokenizer, str):
            trust = getattr(module, "trust_remote_code", False)
            setting = "data.tokenizer" if self.tokenizer is not None else "model.model_name"
            tokenizer = load_tokenizer(tokenizer, revision=revision, trust_remote_code=trust, setting=setting)
        self.contrasts, rejected = build_contrasts(
            self._table.facts, tokenizer, step=step, add_bos_token=self.add_bos_token
        )
        _check_vocabulary(tokenizer, getattr(module, "vocabulary_size", None))
        self.contrasts, too_long = _within(getattr(module, "max_positions", None), self.contrasts)
        self.rejected = sorted(self._table.rejected + rejected + too_long)
        self._refuse_rejected(self.rejected)
        self._step, self._made_for = step, made_for

    def predict_dataloader(self) -> DataLoader[ContrastBatch]:
        """This process's share of the batches that are not done yet."""
        done = self.find_done() if self.find_done is not None else ()
        # Made of all contrasts, so that a run that goes on has the same batches as one that was never interrupted,
        # and so the same numbers to the bit.
        max_rows, max_tokens = self._bounds()
        batches = in_batches(self.contrasts, max_rows=max_rows, max_tokens=max_tokens)
        todo = [left for batch in batches if (left := [each for each in batch if each.key not in done])]
        trainer = self.trainer
        sampler = RankSampler(
            todo,
            rank=trainer.global_rank if trainer is not None else 0,
            world_size=trainer.world_size if trainer is not None else 1,
        )
        return DataLoader(
            todo,  # type: ignore[arg-type]  # a map-style data set
            batch_size=None,  # its items are batches already
            sampler=sampler,
            collate_fn=collate_contrasts,
            num_workers=self.num_workers,
        )

    def identity(self) -> dict[str, Any]:
        """Everything about the data that changes a number, in JSON types. Needs `setup`."""
        digest = hashlib.sha256()
        for contrast in self.contrasts:
            compared = contrast.true_token_id, contrast.false_token_id
            digest.update(repr((contrast.fact, contrast.step, contrast.token_ids, compared)).encode())
        return {
            "step": self._step,
            "source": self.source if isinstance(self.source, str) else type(self.source).__name__,
            "split": self.split,
            "where": self.relation_ids,
            "limit": self.limit,
            "template": self.template,
            "add_bos_token": self.add_bos_token,
            "contrasts": len(self.contrasts),
            "content": digest.hexdigest()[:16],
        }

    def _bounds(self) -> tuple[int | None, int | None]:
        """The rows and the tokens that a batch may have."""
        if self.max_tokens is not None or self.max_rows is not None:
            return self.max_rows, self.max_tokens
        trainer = self.trainer
        max_tokens = default_max_tokens(trainer.strategy.root_device if trainer is not None else None)
        return max_tokens // TOKENS_OF_A_ROW, max_tokens

    def _refuse_rejected(self, rejected: list[Rejected]) -> None:
        if not rejected or (self.contrasts and not self.strict):
            return
        first = min(rejected)
        total, mend = f"none of {len(rejected)} rows can be used; the first, ", "mend the row"
        if self.contrasts:
            total, mend = "", "mend the row, or set data.strict: false to go on without it"
        raise UserError(f"data.source: {total}row {first.row} (id {first.id!r}): {first.reason}; {mend}")


def default_max_tokens(device: torch.device | None) -> int:
    """Tokens of a batch with its padding, where nobody has set them."""
    return MAX_TOKENS_CPU if device is None or device.type == "cpu" else MAX_TOKENS_GPU


def in_batches(
    contrasts: Sequence[Contrast], *, max_rows: int | None = None, max_tokens: int | None
) -> list[list[Contrast]]:
    """Contrasts in batches of like length; see `bucket_by_length` for the bounds."""
    lengths = [len(contrast.token_ids) for contrast in contrasts]
    batches = bucket_by_length(lengths, max_rows=max_rows, max_padded_tokens=max_tokens)
    return [[contrasts[row] for row in rows] for rows in batches]


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, embedded: int | None) -> None:
    if embedded is not None and len(tokenizer) > embedded:
        raise UserError(
            f"data.tokenizer: it has {len(tokenizer)} tokens, but the model embeds {embedded}; "
            "use the model's own tokenizer"
        )


def _within(positions: int | None, contrasts: list[Contrast]) -> tuple[list[Contrast], list[Rejected]]:
    """The contrasts that fit into the model, and why the others do not."""
    fitting: list[Contrast] = []
    rejected: list[Rejected] = []
    for contrast in contrasts:
        length = len(contrast.token_ids)
        if positions is None or length <= positions:
            fitting.append(contrast)
        else:
            reason = f"step {contrast.step}: {length} tokens, and the model has {positions} positions"
            rejected.append(Rejected(contrast.fact.row, contrast.fact.id, reason))
    return fitting, rejected
