"""From the rows of other people's loaders to batches of contrasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lit_attr.errors import UserError, told_of
from lit_attr.facts.contrasts import ContrastBatch, Step, build_contrasts, collate_contrasts
from lit_attr.facts.rows import read_facts
from lit_attr.facts.templates import parse_template
from lit_attr.models.loading import load_tokenizer

MOST_SHOWN = 200


class ContrastCollator:
    """The `collate_fn` of a `torch.utils.data.DataLoader` over rows: dicts, such as those of a `datasets.Dataset`.

    A row that cannot be used stops the loader: a collator has nowhere to put it. `CounterfactDataModule` goes on
    without such rows.

    A fact's id, by which the records know it again, is its row's `id` or `case_id`. A row with neither gets a hash
    of the fact, which stays the same whatever the order of the rows: the same fact twice in a data set is then one
    id twice, which `AttributionWriter` refuses.

    It can be sent to the loader's worker processes.

    Args:
        tokenizer: A fast tokenizer, the model's own, or the name or folder of one.
        columns: Column names that differ: ours to yours, such as `{target_true: answer}`.
        template: A prompt of your own, as in `CounterfactDataModule`.
        step: `divergence` or `all`, see `build_contrasts`; with `all`, a batch has more contrasts than rows.
        add_bos_token: Whether the beginning-of-sequence token goes before each prompt, see `build_contrasts`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        step: Step = "divergence",
        add_bos_token: bool | None = None,
    ) -> None:
        with told_of("ContrastCollator"):
            self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
            self.template = None if template is None else parse_template(template)
        self.columns = columns
        self.step: Step = step
        self.add_bos_token = add_bos_token

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> ContrastBatch:
        """Makes a batch of some rows.

        Raises:
            UserError: A row cannot be used, or two have the same id.
        """
        with told_of("ContrastCollator", {"source": "rows"}):
            table = read_facts(rows, columns=self.columns, template=self.template, numbered=False)
            for refused in table.rejected:
                raise _refusal(rows[refused.row], refused.reason)
            contrasts, rejected = build_contrasts(
                table.facts, self.tokenizer, step=self.step, add_bos_token=self.add_bos_token
            )
            ids = [fact.id for fact in table.facts]
            for refused in rejected:
                raise _refusal(rows[ids.index(refused.id)], refused.reason)
        return collate_contrasts(contrasts)


def _refusal(row: Any, reason: str) -> UserError:
    told = str(row)
    told = told if len(told) <= MOST_SHOWN else f"{told[:MOST_SHOWN]}..."
    return UserError(f"rows: {reason}; mend this row, or leave it out of the data set: {told}")
