"""A contrast: a fact as token ids, with the one position at which its two answers are told apart.

Axes: B contrasts of a batch, T tokens (padded on the right), R roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import RowError, UserError
from lit_attr.facts import Fact, Rejected

Step = Literal["divergence", "all"]
ContrastKey = tuple[int | str, int]
Role = Literal["prefix", "first subject", "middle subject", "last subject", "first subsequent", "further", "last"]
ROLES: tuple[Role, ...] = get_args(Role)
_ROLE_PLACE: dict[str, int] = {role: place for place, role in enumerate(ROLES)}


class Contrast(NamedTuple):
    """A context, and the two tokens whose logits are compared after its last token.

    Attributes:
        fact: The fact this comes from.
        step: Which token of the answers is compared, from 0.
        token_ids: The context: the prompt, then the answer tokens before the step.
        tokens: The text of each context token. Joined they are the context, but for special tokens, which show
            their names. A token that only continues a character begun by the one before it is empty.
        roles: The role of each token. A token that is first and last of the subject is labelled `last subject`.
        subject_span: First token of the subject and the one after its last.
        true_token_id: The true answer's token at the step.
        false_token_id: The false answer's token at the step.
        true_token: Its text; its name in the vocabulary where the two differ only within a character.
        false_token: Likewise.
    """

    fact: Fact
    step: int
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    subject_span: tuple[int, int]
    true_token_id: int
    false_token_id: int
    true_token: str
    false_token: str

    @property
    def told_apart(self) -> bool:
        """Whether the two tokens differ; with `all` steps they need not."""
        return self.true_token_id != self.false_token_id

    @property
    def key(self) -> ContrastKey:
        """What tells this contrast from every other one of a run: the fact's id and the step."""
        return self.fact.id, self.step


class ContrastBatch(NamedTuple):
    """Contrasts side by side, padded on the right.

    Causal attention never looks right, so no real token sees the padding and no mask is needed.

    Attributes:
        contrasts: The contrasts, in the order of the rows.
        token_ids_BT: int64. A shorter row goes on with its own last token.
        last_B: int64, the position of each row's last token, where its logits are read.
        true_token_ids_B: int64.
        false_token_ids_B: int64.
    """

    contrasts: tuple[Contrast, ...]
    token_ids_BT: Tensor
    last_B: Tensor
    true_token_ids_B: Tensor
    false_token_ids_B: Tensor

    def to(self, device: torch.device | str) -> ContrastBatch:
        """The same batch on another device."""
        return ContrastBatch(self.contrasts, *(tensor.to(device) for tensor in self[1:]))

    def clone(self) -> ContrastBatch:
        """The same batch in tensors of its own."""
        return ContrastBatch(self.contrasts, *(tensor.clone() for tensor in self[1:]))


def collate_contrasts(contrasts: Sequence[Contrast]) -> ContrastBatch:
    """Puts contrasts side by side."""
    rows = [contrast.token_ids for contrast in contrasts]
    width = max(map(len, rows))
    return ContrastBatch(
        contrasts=tuple(contrasts),
        # Not with a padding token: transformers warns of one that comes without a mask.
        token_ids_BT=torch.tensor([row + row[-1:] * (width - len(row)) for row in rows]),
        last_B=torch.tensor([len(row) - 1 for row in rows]),
        true_token_ids_B=torch.tensor([contrast.true_token_id for contrast in contrasts]),
        false_token_ids_B=torch.tensor([contrast.false_token_id for contrast in contrasts]),
    )


def build_contrasts(
    facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase, *, step: Step = "divergence"
) -> tuple[list[Contrast], list[Rejected]]:
    """Tokenises facts and finds the step or steps at which their answers are told apart.

    Args:
        facts: The facts, in any number.
        tokenizer: A fast tokenizer: subject spans come from its character offsets.
        step: `divergence` takes the first position where the two answers' tokens differ; the tokens they share
            are put after the prompt. `all` takes every position that both answers have, aligned on their first
            token, with the true answer's tokens before it as context; where the two tokens there are the same,
            the scores are 0.

    Raises:
        UserError: The tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"data.tokenizer: {type(tokenizer).__name__} gives no character offsets; use its fast version"
        )
    contrasts: list[Contrast] = []
    rejected: list[Rejected] = []
    encodings = zip(
        _encode(tokenizer, [fact.prompt for fact in facts]),
        _encode(tokenizer, [fact.prompt + fact.target_true for fact in facts]),
        _encode(tokenizer, [fact.prompt + fact.target_false for fact in facts]),
        strict=True,
    )
    for fact, (prompt, with_true, with_false) in zip(facts, encodings, strict=True):
        try:
            contrasts.extend(_contrasts_of(fact, prompt, with_true, with_false, step))
        except RowError as error:
            rejected.append(Rejected(fact.row, fact.id, str(error)))
    return contrasts, rejected


def roles_of(length: int, subject_span: tuple[int, int]) -> tuple[Role, ...]:
    """The role of each of `length` tokens, as in the causal traces of Meng et al. (2022, section 2.2).

    The subject's roles go before `last`, and `last` before `first subsequent`, where one token could have both.
    """
    start, stop = subject_span

    def role_at(position: int) -> Role:
        if position < start:
            return "prefix"
        if position < stop:
            if position == stop - 1:
                return "last subject"
            return "first subject" if position == start else "middle subject"
        if position == length - 1:
            return "last"
        return "first subsequent" if position == stop else "further"

    return tuple(role_at(position) for position in range(length))


def role_mask_BRT(roles: Sequence[Sequence[str]], subject_spans: Sequence[Sequence[int]]) -> Tensor:
    """Which tokens count for which role: bool, axes contrast × role (in the order of `ROLES`) × token.

    The one token of a one-token subject counts as the subject's first and as its last.
    """
    mask_BRT = torch.zeros(len(roles), len(ROLES), max(map(len, roles)), dtype=torch.bool)
    for row, labels in enumerate(roles):
        for position, role in enumerate(labels):
            mask_BRT[row, _ROLE_PLACE[role], position] = True
        mask_BRT[row, _ROLE_PLACE["first subject"], subject_spans[row][0]] = True
    return mask_BRT


class _Encoding(NamedTuple):
    """Token ids of a text, and what they are called: the text of each token, and its name in the vocabulary."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    special: list[bool]
    texts: list[str]
    names: list[str]


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[_Encoding]:
    if not texts:
        return
    encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    special_ids = set(tokenizer.all_special_ids)
    for text, ids, offsets, special in zip(
        texts,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        # What a tokenizer puts after a text (an end of sequence) has no place before an answer.
        while ids and special[-1] and ids[-1] in special_ids:
            ids, offsets, special = ids[:-1], offsets[:-1], special[:-1]
        names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
        yield _Encoding(
            ids, offsets, [bool(flag) for flag in special], _texts(text, offsets, special, names), names
        )


def _texts(text: str, offsets: list[tuple[int, int]], special: list[int], names: list[str]) -> list[str]:
    pieces, reached = [], 0
    for (_, end), is_special, name in zip(offsets, special, names, strict=True):
        # From where the last token ended: some tokenizers leave the space before a word out of its offsets.
        pieces.append(name if is_special else text[reached:end])
        reached = reached if is_special else max(reached, end)
    return pieces


def _contrasts_of(
    fact: Fact, prompt: _Encoding, with_true: _Encoding, with_false: _Encoding, step: Step
) -> Iterator[Contrast]:
    width = len(prompt.ids)
    if with_true.ids[:width] != prompt.ids or with_false.ids[:width] != prompt.ids:
        raise RowError("the tokenizer merges the prompt's end with an answer")
    true_ids, false_ids = with_true.ids[width:], with_false.ids[width:]
    shared = min(len(true_ids), len(false_ids))
    divergence = next((k for k in range(shared) if true_ids[k] != false_ids[k]), None)
    if divergence is None:
        raise RowError(
            f"the answers {fact.target_true!r} and {fact.target_false!r} have the same tokens as far as both go"
        )
    span = _subject_span(fact, prompt)
    for k in range(shared) if step == "all" else (divergence,):
        length = width + k
        true_token, false_token = with_true.texts[length], with_false.texts[length]
        if true_ids[k] != false_ids[k] and (true_token == false_token or not true_token or not false_token):
            # Answers that part within a character: only the vocabulary's names tell the tokens apart.
            true_token, false_token = with_true.names[length], with_false.names[length]
        yield Contrast(
            fact=fact,
            step=k,
            token_ids=tuple(with_true.ids[:length]),
            tokens=tuple(with_true.texts[:length]),
            roles=roles_of(length, span),
            subject_span=span,
            true_token_id=true_ids[k],
            false_token_id=false_ids[k],
            true_token=true_token,
            false_token=false_token,
        )


def _subject_span(fact: Fact, prompt: _Encoding) -> tuple[int, int]:
    begin, end = fact.subject_start, fact.subject_start + len(fact.subject)
    touched = [
        index
        for index, ((start, stop), special) in enumerate(zip(prompt.offsets, prompt.special, strict=True))
        if not special and start < end and stop > begin
    ]
    if not touched:
        raise RowError(f"no token of the prompt belongs to the subject {fact.subject!r}")
    return touched[0], touched[-1] + 1
