"""From facts to contrasts: tokens, subject spans, and the steps at which two answers differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from lit_attr.errors import ArgumentError, RowError, shown
from lit_attr.facts.contrasts import Contrast, Step
from lit_attr.facts.roles import roles_of
from lit_attr.facts.rows import Fact, Rejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FACTS_AT_A_TIME = 256
# With the step `all`, an answer's contrasts hold its tokens once each: their size grows with the square of this.
MAX_STEPS = 1000
_SPACE_MARKS = "▁Ġ"  # how SentencePiece and byte-level vocabularies spell a space


class _Encoding(NamedTuple):
    """The tokens of a text, of which the first `leading` are special.

    Attributes:
        ids: Their ids.
        offsets: The characters of the text that each stands for, as begin and end.
        names: Their names in the vocabulary.
        leading: The number of special tokens before the text.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    names: list[str]
    leading: int


class _MergeError(RowError):
    """A token reaches from the prompt into an answer."""


class _Token(NamedTuple):
    id: int
    text: str
    name: str


def build_contrasts(
    facts: Sequence[Fact],
    tokenizer: PreTrainedTokenizerBase,
    *,
    step: Step = "divergence",
    add_bos_token: bool | None = None,
    max_tokens: int | None = None,
) -> tuple[list[Contrast], list[Rejected]]:
    """Tokenises facts and finds the step or steps at which their answers are compared.

    Args:
        facts: The facts, in any number.
        tokenizer: A fast tokenizer: subject spans come from its character offsets.
        step: `divergence` takes the first position at which the tokens of the two answers differ; the tokens that
            they share before it are appended to the prompt. `all` takes every position that both answers have,
            aligned on their first token, with the true answer's tokens before it as context; where the two tokens
            are the same, the scores are 0. Answers that differ at no position that both have are rejected in
            either case.
        add_bos_token: Whether to put the beginning-of-sequence token before the prompt; None leaves that to the
            tokenizer. As with the attribute of that name in transformers, True and False leave out every other
            special token that the tokenizer would put there, such as BERT's `[CLS]`. A prompt whose own text
            begins with the beginning-of-sequence token keeps that one and never gets a second.
        max_tokens: How many tokens a contrast may have: the model's positions.

    Returns:
        The contrasts, and the reasons why there are not more. The fact of a contrast has the prompt and the
        answers as they were tokenised.

    Raises:
        ArgumentError: The tokenizer is not a fast one, or has no beginning-of-sequence token to add.
    """
    if not tokenizer.is_fast:
        raise ArgumentError(
            "tokenizer", f"{type(tokenizer).__name__} gives no character offsets; use its fast version"
        )
    if add_bos_token and tokenizer.bos_token_id is None:
        raise ArgumentError(
            "add_bos_token", "the tokenizer has no beginning-of-sequence token; leave the setting out"
        )
    tokenizing = _Tokenizing(tokenizer, step, add_bos_token, max_tokens)
    controls = _control_tokens(tokenizer)
    contrasts: list[Contrast] = []
    rejected: list[Rejected] = []
    # In chunks: the output of a tokenizer takes several times the memory of what is kept of it.
    for start in range(0, len(facts), FACTS_AT_A_TIME):
        chunk = [_settle_spaces(fact, controls) for fact in facts[start : start + FACTS_AT_A_TIME]]
        for fact, (made, refused) in zip(chunk, tokenizing.outcomes(chunk), strict=True):
            contrasts.extend(made)
            rejected.extend(Rejected(fact.row, fact.id, str(reason)) for reason in refused)
    return contrasts, rejected


def have_spaces(facts: Sequence[Fact], contrasts: Sequence[Contrast]) -> list[bool]:
    """Whether each contrast, made of one of the facts, has a space before an answer that its row does not have."""
    added = {fact.id: fact for fact in facts if any(fact.spaces_added)}
    return [
        (fact := added.get(contrast.fact.id)) is not None
        and (contrast.fact.target_true, contrast.fact.target_false) == (fact.target_true, fact.target_false)
        for contrast in contrasts
    ]


class _Tokenizing(NamedTuple):
    """How facts are tokenised: the arguments of :func:`build_contrasts`."""

    tokenizer: PreTrainedTokenizerBase
    step: Step
    add_bos_token: bool | None
    max_tokens: int | None

    def outcomes(self, facts: Sequence[Fact]) -> list[tuple[list[Contrast], list[RowError]]]:
        """For each fact its contrasts, and why there are not more.

        Many tokenizers merge a space at the end of the prompt with the answer. The same text is then cut before
        that space.
        """
        outcomes = self._as_they_are(facts)
        for characters in (" ", None):  # only spaces, then line ends as well
            moved: dict[int, Fact] = {}
            for place, (_, refused) in enumerate(outcomes):
                if any(isinstance(error, _MergeError) for error in refused) and facts[place].prompt[-1:].isspace():
                    moved[place] = _move_spaces(facts[place], characters)
            for place, (made, refused) in zip(moved, self._as_they_are([*moved.values()]), strict=True):
                if not any(isinstance(error, _MergeError) for error in refused):
                    outcomes[place] = made, refused
        return outcomes

    def _as_they_are(self, facts: Sequence[Fact]) -> list[tuple[list[Contrast], list[RowError]]]:
        outcomes: list[tuple[list[Contrast], list[RowError]]] = []
        texts = (
            [fact.prompt for fact in facts],
            [fact.prompt + fact.target_true for fact in facts],
            [fact.prompt + fact.target_false for fact in facts],
        )
        encodings = zip(*(_encode(self.tokenizer, each, self.add_bos_token) for each in texts), strict=True)
        for fact, (prompt, with_true, with_false) in zip(facts, encodings, strict=True):
            try:
                outcomes.append(self._contrasts_of(fact, prompt, with_true, with_false))
            except RowError as error:
                outcomes.append(([], [error]))
        return outcomes

    def _contrasts_of(
        self, fact: Fact, prompt: _Encoding, with_true: _Encoding, with_false: _Encoding
    ) -> tuple[list[Contrast], list[RowError]]:
        span = _subject_span(fact, prompt)
        unknown_id = self.tokenizer.unk_token_id
        true = _answer_tokens(fact, fact.target_true, prompt, with_true, unknown_id)
        false = _answer_tokens(fact, fact.target_false, prompt, with_false, unknown_id)
        prompt_texts = prompt.names[: prompt.leading] + _cut(fact.prompt, prompt.offsets[prompt.leading :])
        contrasts: list[Contrast] = []
        refused: list[RowError] = []
        for k in _steps(fact, true, false, self.step):
            length = len(prompt.ids) + k
            if self.max_tokens is not None and length > self.max_tokens:
                refused.append(
                    RowError(f"step {k}: {length} tokens, and the model has {self.max_tokens} positions")
                )
                continue
            before, ours, theirs = true[:k], true[k], false[k]
            # Where the answers part within a character, only the names of the tokens differ.
            by_name = ours.id != theirs.id and (ours.text == theirs.text or not ours.text or not theirs.text)
            contrasts.append(
                Contrast(
                    fact=fact,
                    step=k,
                    token_ids=(*prompt.ids, *(token.id for token in before)),
                    tokens=(*prompt_texts, *(token.text for token in before)),
                    roles=roles_of(length, span),
                    subject_span=span,
                    true_token_id=ours.id,
                    false_token_id=theirs.id,
                    true_token=ours.name if by_name else ours.text,
                    false_token=theirs.name if by_name else theirs.text,
                )
            )
        return contrasts, refused


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens of a tokenizer, and others that are written like one, such as the turns of a chat."""
    added = {str(token) for token in tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        text = token.content.strip()
        if token.special or (text[:1], text[-1:]) in (("<", ">"), ("[", "]")):
            added.add(text)
    return tuple(sorted(added - {""}))


def _settle_spaces(fact: Fact, controls: tuple[str, ...]) -> Fact:
    """Takes the spaces that were put before the answers out again where they stand beside a control token."""
    if not any(fact.spaces_added):
        return fact
    answers = [fact.target_true, fact.target_false]
    after = fact.prompt.endswith(controls)
    for place, is_added in enumerate(fact.spaces_added):
        if is_added and (after or answers[place].startswith(controls, 1)):
            answers[place] = answers[place][1:]
    return fact._replace(target_true=answers[0], target_false=answers[1], spaces_added=(False, False))


def _move_spaces(fact: Fact, characters: str | None) -> Fact:
    """The same texts, with white space at the prompt's end as the beginning of the answers."""
    prompt = fact.prompt.rstrip(characters)
    moved = fact.prompt[len(prompt) :]
    return fact._replace(
        prompt=prompt, target_true=moved + fact.target_true, target_false=moved + fact.target_false
    )


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
        # A text with more tokens than the model has positions is rejected later, with its row.
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
        # The mask marks what the tokenizer puts around a text, not the special tokens that the text spells out.
        if special[:2] == [1, 0] and ids[:2] == [bos_id, bos_id]:
            ids, offsets, special = ids[1:], offsets[1:], special[1:]
        # What it puts after a text, such as an end of sequence, must not stand between prompt and answer.
        length = len(ids)
        while length and special[length - 1]:
            length -= 1
        ids, offsets, special = ids[:length], offsets[:length], special[:length]
        names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
        offsets = [_span_in(text, name, offset) for name, offset in zip(names, offsets, strict=True)]
        yield _Encoding(ids, offsets, names, leading=sum(special))


def _span_in(text: str, name: str, offset: tuple[int, int]) -> tuple[int, int]:
    """A token's characters in the text: none where it is a space that the tokenizer has inserted.

    Tokenizers give such a space the offsets of the character after it.
    """
    start, end = offset
    is_space = not name.strip(_SPACE_MARKS)
    return (start, start) if is_space and text[start:end].strip().strip(_SPACE_MARKS) else offset


def _cut(text: str, offsets: list[tuple[int, int]]) -> list[str]:
    """Cuts a text into one piece a token, with nothing left out."""
    cuts = [0]
    for (_, end), (next_start, _) in pairwise(offsets):
        # Of characters that no token covers, a space goes to the token after it; an accent, or whatever else the
        # tokenizer drops, to the one before.
        cut = max(cuts[-1], end)
        while cut < next_start and not text[cut].isspace():
            cut += 1
        cuts.append(cut)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _steps(fact: Fact, true: Sequence[_Token], false: Sequence[_Token], step: Step) -> Sequence[int]:
    """The steps at which the answers are compared."""
    common = min(len(true), len(false))
    differing = next((k for k in range(common) if true[k].id != false[k].id), None)
    if differing is None:
        answers = f"the answers {shown(fact.target_true)} and {shown(fact.target_false)}"
        if len(true) == len(false):
            raise RowError(f"{answers} have the same tokens")
        raise RowError(f"{answers} have the same tokens as far as the shorter one goes")
    if step == "divergence":
        return [differing]
    if common > MAX_STEPS:
        raise RowError(f"the answers have {common:,} tokens to compare, more than {MAX_STEPS:,}")
    return range(common)


def _answer_tokens(
    fact: Fact, answer: str, prompt: _Encoding, whole: _Encoding, unknown_id: int | None
) -> list[_Token]:
    """The tokens of prompt and answer after those that end within the prompt, which must be the prompt's own."""
    length = len(fact.prompt)
    width = sum(end <= length for _, end in whole.offsets)
    if whole.ids[:width] != prompt.ids:
        fix = "; end the prompt without a space" if fact.prompt[-1:].isspace() else ""
        raise _MergeError(f"the tokenizer merges the prompt's end with the answer {shown(answer)}{fix}")
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
        if start < end and stop > begin  # special tokens have the empty span 0 to 0
    ]
    if not touched:
        raise RowError(f"no token of the prompt belongs to the subject {shown(fact.subject)}")
    return touched[0], touched[-1] + 1
