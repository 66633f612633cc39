"""The collate function for other people's data loaders: rows in, batches of contrasts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_attr.errors import ArgumentError, UserError, arguments_of
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.facts.cells import printable
from lit_attr.facts.contrasts import Contrast, Step
from lit_attr.facts.rows import read_facts
from lit_attr.facts.seams import AUTO
from lit_attr.facts.templates import parse_template
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.models.loading import load_tokenizer

MAX_ROW_CHARACTERS = 200


class ContrastCollator:
    """The `collate_fn` of a `torch.utils.data.DataLoader` over rows: dicts, such as those of a `datasets.Dataset`.

    An invalid row stops the loader, since a collator has no other way to report it; `CounterfactDataModule`
    leaves such rows out and reports them.

    A fact's id, by which records identify it, is its row's `id` or `case_id`. A row with neither gets a hash of
    the fact, which does not depend on the order of the rows. The same fact twice in a data set then has the same
    id twice, which `AttributionWriter` refuses.

    The collator can be pickled, so loaders with worker processes can use it.

    Args:
        tokenizer: The model's own fast tokenizer, or its name or folder.
        columns: Our column name to yours, for columns whose names differ, such as `{target_true: answer}`.
        template: A prompt of your own, as in `CounterfactDataModule`.
        step: `divergence` or `all`, see `build_contrasts`; with `all`, a batch has more contrasts than rows.
        add_bos_token: Whether to put the beginning-of-sequence token before each prompt, see `build_contrasts`.
        answer_separator: What to put between prompt and answer where a row has no white space there, as in
            `CounterfactDataModule`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        step: Step = "divergence",
        add_bos_token: bool | None = None,
        answer_separator: str = AUTO,
    ) -> None:
        with arguments_of("ContrastCollator"):
            self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
            self.template = None if template is None else parse_template(template)
        self.columns = columns
        self.step: Step = step
        self.add_bos_token = add_bos_token
        self.answer_separator = answer_separator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> ContrastBatch:
        """Makes a batch of some rows.

        Raises:
            UserError: A row is invalid, or two have the same id.
        """
        try:
            with arguments_of("ContrastCollator"):
                return collate_contrasts(self._contrasts_of(rows))
        except ArgumentError as error:
            # A loader's worker process can hand over only errors that are made from their message alone.
            raise UserError(str(error)) from error

    def _contrasts_of(self, rows: Sequence[Mapping[str, Any]]) -> list[Contrast]:
        table = read_facts(
            rows,
            columns=self.columns,
            template=self.template,
            numbered=False,
            answer_separator=self.answer_separator,
        )
        for refused in table.rejected:
            raise _refusal(rows[refused.row], refused.reason)
        contrasts, rejected = build_contrasts(
            table.facts, self.tokenizer, step=self.step, add_bos_token=self.add_bos_token
        )
        ids = [fact.id for fact in table.facts]
        for refused in rejected:
            raise _refusal(rows[ids.index(refused.id)], refused.reason)
        return contrasts


def _refusal(row: Any, reason: str) -> ArgumentError:
    content = str(row)
    content = content if len(content) <= MAX_ROW_CHARACTERS else f"{content[:MAX_ROW_CHARACTERS]}..."
    reason = f"{reason}; fix this row, or leave it out of the data set: {printable(content)}"
    return ArgumentError("rows", reason)
