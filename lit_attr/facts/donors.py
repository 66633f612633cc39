"""Donors: the facts whose writes take the place of other facts' writes under resample ablation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from lit_attr.errors import shown
from lit_attr.facts.contrasts import Contrast, Donor
from lit_attr.facts.rows import Fact, FactTable, Rejected
from lit_attr.facts.templates import normal_form

# The relation, and the text before and after the subject.
_Template = tuple[str, str, str]
# How many tokens there are before, in and after the subject.
_Counts = tuple[int, int, int]
_T = TypeVar("_T")


def possible_donors(table: FactTable) -> list[Fact]:
    """The facts of a source that a run lacks and that may be donors of those it has, in the order of the source.

    Args:
        table: Read `with_donors`.
    """
    own_ids = {fact.id for fact in table.facts}
    if table.donor_ids:
        wanted_ids = {*table.donor_ids.values()} - own_ids
        return [fact for fact in table.pool.values() if fact.id in wanted_ids]
    templates = {_loose_template(fact) for fact in table.facts}
    return [fact for fact in table.pool.values() if fact.id not in own_ids and _loose_template(fact) in templates]


def with_donors(
    contrasts: Sequence[Contrast], others: Sequence[Contrast] = (), *, seed: int = 0
) -> tuple[list[Contrast], list[Rejected]]:
    """Gives each contrast a donor: another fact of the same form with another true answer.

    A donor has the same relation (the text of `relation`, or the `relation_id` of rows without one), the same text
    before and after its subject, and as many tokens before, in and after the subject, so that each token has its
    counterpart at the same position. Its true answer is another one: the false answer of the fact where there is
    such a donor (symmetric token replacement: Zhang & Nanda, 2024, arXiv:2309.16042). Its prompt is another one.

    A fact has one donor for all its steps. The answer tokens that a contrast has after its prompt follow the
    donor's prompt as well, whatever the donor's own answer is: the two contexts differ in the subject alone.

    Among several, hashes of the seed, the answers and the facts' ids decide, first on the answer, then on the fact
    with that answer. The choice depends on the seed and on the facts with that template and those counts, and on
    nothing else: not on the process, nor on the order of rows, unless their numbers are their ids.

    The time grows with N log N for N facts, and with the number of facts that share one prompt.

    Args:
        contrasts: The contrasts of a run; any of their facts may be the donor of another.
        others: Contrasts of other facts that may be donors.
        seed: Seed of the hash.

    Returns:
        The contrasts of facts with a donor, and one reason for each of the other facts.
    """
    prompts = _prompts((*contrasts, *others), seed)
    groups: dict[tuple[_Template, _Counts], _Group] = {}
    for prompt in prompts.values():
        groups.setdefault((_template(prompt.fact), prompt.counts), _Group()).add(prompt)
    for group in groups.values():
        group.sort(seed)
    sizes = Counter(_template(prompt.fact) for prompt in prompts.values())

    def donor_of(own: _Prompt) -> _Prompt | str:
        template = _template(own.fact)
        group = groups[template, own.counts]
        return group.donor_of(own) or _why_none(own, sizes[template] - 1, group.size - 1)

    return _given(contrasts, prompts, donor_of)


def with_named_donors(
    contrasts: Sequence[Contrast], others: Sequence[Contrast], donor_ids: Mapping[int | str, int | str]
) -> tuple[list[Contrast], list[Rejected]]:
    """Gives each contrast the donor that its row names, which may be the row itself.

    The donor needs as many tokens before, in and after its subject, and nothing else.

    Args:
        contrasts: The contrasts of a run; any of their facts may be the donor of another.
        others: Contrasts of other facts that are named.
        donor_ids: The id of each fact's donor, by the fact's id.

    Returns:
        As :func:`with_donors`.
    """
    prompts = _prompts((*contrasts, *others), seed=0)

    def donor_of(own: _Prompt) -> _Prompt | str:
        donor_id = donor_ids[own.fact.id]
        name = shown(donor_id) if isinstance(donor_id, str) else str(donor_id)
        donor = prompts.get(donor_id)
        if donor is None:
            return f"its donor has the id {name}, which no usable row has"
        if donor.counts != own.counts:
            return f"its donor {name} has {_in_words(donor.counts)}; the row itself has {_in_words(own.counts)}"
        return donor

    return _given(contrasts, prompts, donor_of)


class _Prompt(NamedTuple):
    """A fact's prompt in tokens.

    Attributes:
        fact: The fact.
        token_ids: The tokens.
        counts: How many there are before, in and after the subject.
        hash: 32 bytes. They say where the search for the fact's donor starts, and order facts with one answer.
    """

    fact: Fact
    token_ids: tuple[int, ...]
    counts: _Counts
    hash: bytes


class _Group:
    """Facts with one template and the same counts of tokens, by their true answers."""

    def __init__(self) -> None:
        self.size = 0
        self._by_answer: dict[str, list[_Prompt]] = {}
        self._answers: list[str] = []

    def add(self, prompt: _Prompt) -> None:
        """Adds a fact."""
        self.size += 1
        self._by_answer.setdefault(_answer(prompt.fact.target_true), []).append(prompt)

    def sort(self, seed: int) -> None:
        """Puts answers, and the facts of each, into a random order. Needs all facts."""
        self._answers = sorted(self._by_answer, key=lambda answer: _hash(seed, "answer", answer))
        for prompts in self._by_answer.values():
            prompts.sort(key=lambda prompt: prompt.hash)

    def donor_of(self, own: _Prompt) -> _Prompt | None:
        """The donor of one of the facts; None where there is none."""
        # Half of the hash for each choice, so that the one says nothing about the other.
        of_answer, of_fact = int.from_bytes(own.hash[:16], "big"), int.from_bytes(own.hash[16:], "big")
        true = _answer(own.fact.target_true)
        for answer in chain([_answer(own.fact.target_false)], _rotated(self._answers, of_answer)):
            prompts = self._by_answer.get(answer, []) if answer != true else []
            for donor in _rotated(prompts, of_fact):
                if donor.token_ids != own.token_ids:
                    return donor
        return None


def _given(
    contrasts: Sequence[Contrast],
    prompts: Mapping[int | str, _Prompt],
    donor_of: Callable[[_Prompt], _Prompt | str],
) -> tuple[list[Contrast], list[Rejected]]:
    """Puts donors into contrasts; `donor_of` returns the reason where a fact has none."""
    found: dict[int | str, _Prompt] = {}
    rejected: dict[int | str, Rejected] = {}
    given: list[Contrast] = []
    for contrast in contrasts:
        fact = contrast.fact
        if fact.id not in found and fact.id not in rejected:
            donor = donor_of(prompts[fact.id])
            if isinstance(donor, str):
                rejected[fact.id] = Rejected(fact.row, fact.id, donor)
            else:
                found[fact.id] = donor
        if fact.id in found:
            donor = found[fact.id]
            after_prompt = contrast.token_ids[len(donor.token_ids) :]
            given.append(contrast._replace(donor=Donor(donor.fact.id, donor.token_ids + after_prompt)))
    return given, [*rejected.values()]


def _prompts(contrasts: Iterable[Contrast], seed: int) -> dict[int | str, _Prompt]:
    """The prompt of each fact, by its id; the first where two facts have one id."""
    prompts: dict[int | str, _Prompt] = {}
    for contrast in contrasts:
        fact, token_ids, (start, stop) = contrast.fact, contrast.prompt_ids, contrast.subject_span
        if fact.id not in prompts:
            counts = start, stop - start, len(token_ids) - stop
            prompts[fact.id] = _Prompt(fact, token_ids, counts, _hash(seed, "fact", fact.id))
    return prompts


def _template(fact: Fact) -> _Template:
    before, after = fact.prompt[: fact.subject_start], fact.prompt[fact.subject_start + len(fact.subject) :]
    return fact.relation or fact.relation_id, before, after


def _loose_template(fact: Fact) -> _Template:
    # A tokenizer may move spaces at the end of a prompt to the answers.
    relation, before, after = _template(fact)
    return relation, before, after.rstrip()


def _answer(text: str) -> str:
    return normal_form(text.strip())


def _hash(seed: int, kind: str, value: int | str) -> bytes:
    # Another order than that of the run's contrasts: the sample of a run, the first in that order, would have the
    # same few donors.
    return hashlib.sha256(json.dumps([seed, kind, value]).encode()).digest()


def _rotated(values: Sequence[_T], number: int) -> Iterator[_T]:
    """The values from the place on that the number gives, and then those before it."""
    return (values[(number + step) % len(values)] for step in range(len(values)))


def _why_none(own: _Prompt, of_template: int, of_form: int) -> str:
    if not of_template:
        return "no donor: no other row has its relation and template"
    if not of_form:
        return f"no donor: no other row with its relation and template has {_in_words(own.counts)}"
    return "no donor: no other row with its template and numbers of tokens has another prompt and true answer"


def _in_words(counts: _Counts) -> str:
    return "{}, {} and {} tokens before, in and after the subject".format(*counts)
