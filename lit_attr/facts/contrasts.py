"""A contrast: a fact as token ids, with the one position at which its two answers are told apart.

Axes: B contrasts of a batch, T tokens (padded on the right), R roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_attr.errors import RowError, UserError, shown
from lit_attr.facts.rows import Fact, Rejected

Step = Literal["divergence", "all"]
ContrastKey = tuple[int | str, int]
Role = Literal["prefix", "first subject", "middle subject", "last subject", "first subsequent", "further", "last"]
ROLES: tuple[Role, ...] = get_args(Role)
FACTS_AT_A_TIME = 256
_ROLE_PLACE: dict[str, int] = {role: place for place, role in enumerate(ROLES)}
_SPACE_MARKS = "▁Ġ"  # how SentencePiece and byte-level vocabularies spell a space


class Contrast(NamedTuple):
    """A context, and the two tokens whose logits are compared after its last token.

    Attributes:
        fact: The fact this comes from.
        step: Which token of the answers is compared, from 0.
        token_ids: The context: the prompt, then the answer tokens before the step.
        tokens: The text of each context token. Joined they are the context, but for special tokens put before it,
            which show their names. A token that only continues a character begun by the one before it is empty,
            and so is a space that the tokenizer puts before the text.
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

    def split(self) -> tuple[ContrastBatch, ContrastBatch]:
        """Its first and its second half, as wide as it was."""
        rows = range(len(self.contrasts))
        half = len(rows) // 2
        return self.select(rows[:half]), self.select(rows[half:])

    def select(self, rows: Sequence[int]) -> ContrastBatch:
        """Some of the contrasts, as wide as they were."""
        contrasts = tuple(self.contrasts[row] for row in rows)
        return ContrastBatch(contrasts, *(tensor[list(rows)] for tensor in self[1:]))


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
    facts: Sequence[Fact],
    tokenizer: PreTrainedTokenizerBase,
    *,
    step: Step = "divergence",
    add_bos_token: bool | None = None,
) -> tuple[list[Contrast], list[Rejected]]:
    """Tokenises facts and finds the step or steps at which their answers are told apart.

    Args:
        facts: The facts, in any number.
        tokenizer: A fast tokenizer: subject spans come from its character offsets.
        step: `divergence` takes the first position where the two answers' tokens differ; the tokens they share
            are put after the prompt. `all` takes every position that both answers have, aligned on their first
            token, with the true answer's tokens before it as context; where the two tokens there are the same,
            the scores are 0. Answers that differ at no position which both have are refused either way.
        add_bos_token: Whether the beginning-of-sequence token goes before the prompt; where None, as the
            tokenizer does it. As with the attribute of that name in transformers, True and False leave out every
            other special token the tokenizer puts there, such as BERT's `[CLS]`. A prompt whose own text begins
            with the beginning-of-sequence token keeps that one and gets no second, whatever is said here.

    Returns:
        The contrasts, and each fact of which there are none, with the reason.

    Raises:
        UserError: The tokenizer is not a fast one, or lacks the beginning-of-sequence token it is to add.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"data.tokenizer: {type(tokenizer).__name__} gives no character offsets; use its fast version"
        )
    if add_bos_token and tokenizer.bos_token_id is None:
        raise UserError(
            "data.add_bos_token: the tokenizer has no beginning-of-sequence token; leave the setting out"
        )
    contrasts: list[Contrast] = []
    rejected: list[Rejected] = []
    # Some at a time: what a tokenizer gives out takes several times the memory of what is kept of it.
    for start in range(0, len(facts), FACTS_AT_A_TIME):
        some = facts[start : start + FACTS_AT_A_TIME]
        encodings = zip(
            _encode(tokenizer, [fact.prompt for fact in some], add_bos_token),
            _encode(tokenizer, [fact.prompt + fact.target_true for fact in some], add_bos_token),
            _encode(tokenizer, [fact.prompt + fact.target_false for fact in some], add_bos_token),
            strict=True,
        )
        for fact, (prompt, with_true, with_false) in zip(some, encodings, strict=True):
            try:
                contrasts.extend(_contrasts_of(fact, prompt, with_true, with_false, step, tokenizer.unk_token_id))
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
    """The tokens of a text, the first `leading` of them special: ids, places in the text, names."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    names: list[str]
    leading: int


class _Token(NamedTuple):
    id: int
    text: str
    name: str


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], add_bos_token: bool | None
) -> Iterator[_Encoding]:
    if not texts:
        return
    encoded = tokenizer(
        texts,
        add_special_tokens=add_bos_token is None,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        # A text longer than the model's positions is refused later, with its row.
        verbose=False,
    )
    bos_id = tokenizer.bos_token_id
    for text, ids, offsets, special in zip(
        texts,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        if add_bos_token:
            ids, offsets, special = [bos_id, *ids], [(0, 0), *offsets], [1, *special]
        # The mask has what the tokenizer puts around a text, not the special tokens the text itself spells out.
        if special[:2] == [1, 0] and ids[:2] == [bos_id, bos_id]:
            ids, offsets, special = ids[1:], offsets[1:], special[1:]
        # What it puts after a text (an end of sequence) has no place before an answer.
        while ids and special[-1]:
            ids, offsets, special = ids[:-1], offsets[:-1], special[:-1]
        names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
        offsets = [_place(text, name, offset) for name, offset in zip(names, offsets, strict=True)]
        yield _Encoding(ids, offsets, names, leading=sum(special))


def _place(text: str, name: str, offset: tuple[int, int]) -> tuple[int, int]:
    """Where a token stands in its text: of no width where it is a space that the tokenizer put in by itself.

    The offsets of such a space are those of the character it was put before.
    """
    start, end = offset
    is_space = not name.strip(_SPACE_MARKS)
    return (start, start) if is_space and text[start:end].strip().strip(_SPACE_MARKS) else offset


def _cut(text: str, offsets: list[tuple[int, int]]) -> list[str]:
    """The text in one piece a token, with nothing left out."""
    cuts = [0]
    for (_, end), (next_start, _) in pairwise(offsets):
        # What is in no token: a space belongs to the token after it; an accent, or whatever else the tokenizer
        # drops, to the one before.
        cut = max(cuts[-1], end)
        while cut < next_start and not text[cut].isspace():
            cut += 1
        cuts.append(cut)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _contrasts_of(
    fact: Fact,
    prompt: _Encoding,
    with_true: _Encoding,
    with_false: _Encoding,
    step: Step,
    unknown_id: int | None,
) -> Iterator[Contrast]:
    span = _subject_span(fact, prompt)
    true = _answer_tokens(fact, fact.target_true, prompt, with_true, unknown_id)
    false = _answer_tokens(fact, fact.target_false, prompt, with_false, unknown_id)
    differing = [k for k, (ours, theirs) in enumerate(zip(true, false, strict=False)) if ours.id != theirs.id]
    if not differing:
        answers = f"the answers {shown(fact.target_true)} and {shown(fact.target_false)}"
        if len(true) == len(false):
            raise RowError(f"{answers} have the same tokens")
        raise RowError(f"{answers} have the same tokens as far as the shorter one goes")
    prompt_texts = prompt.names[: prompt.leading] + _cut(fact.prompt, prompt.offsets[prompt.leading :])
    for k in range(min(len(true), len(false))) if step == "all" else differing[:1]:
        before, ours, theirs = true[:k], true[k], false[k]
        # Answers that part within a character: only the vocabulary's names tell the tokens apart.
        by_name = ours.id != theirs.id and (ours.text == theirs.text or not ours.text or not theirs.text)
        yield Contrast(
            fact=fact,
            step=k,
            token_ids=(*prompt.ids, *(token.id for token in before)),
            tokens=(*prompt_texts, *(token.text for token in before)),
            roles=roles_of(len(prompt.ids) + k, span),
            subject_span=span,
            true_token_id=ours.id,
            false_token_id=theirs.id,
            true_token=ours.name if by_name else ours.text,
            false_token=theirs.name if by_name else theirs.text,
        )


def _answer_tokens(
    fact: Fact, answer: str, prompt: _Encoding, whole: _Encoding, unknown_id: int | None
) -> list[_Token]:
    """The tokens of the whole string after those that end within the prompt, which must be the prompt's own."""
    length = len(fact.prompt)
    width = sum(end <= length for _, end in whole.offsets)
    if whole.ids[:width] != prompt.ids:
        mend = "; end the prompt without a space" if fact.prompt[-1:].isspace() else ""
        raise RowError(f"the tokenizer merges the prompt's end with the answer {shown(answer)}{mend}")
    ids, names = whole.ids[width:], whole.names[width:]
    if not ids or unknown_id in ids:
        raise RowError(f"the tokenizer has no token for a part of the answer {shown(answer)}")
    texts = _cut(answer, [(start - length, end - length) for start, end in whole.offsets[width:]])
    return [_Token(*token) for token in zip(ids, texts, names, strict=True)]


def _subject_span(fact: Fact, prompt: _Encoding) -> tuple[int, int]:
    begin, end = fact.subject_start, fact.subject_start + len(fact.subject)
    touched = [
        index
        for index, (start, stop) in enumerate(prompt.offsets)
        if start < end and stop > begin  # special tokens have no width, at 0
    ]
    if not touched:
        raise RowError(f"no token of the prompt belongs to the subject {shown(fact.subject)}")
    return touched[0], touched[-1] + 1
