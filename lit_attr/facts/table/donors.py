"""Donors: the facts whose writes take the place of other facts' writes under resample ablation.

Axes: P prompts, one a fact; N contrasts; B bytes of a hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import shown
from lit_attr.facts.contrasts import Contrast, Donor
from lit_attr.facts.rows import Fact, Rejected
from lit_attr.facts.table.keys import KeyIndex, hash_keys
from lit_attr.facts.templates import normal_form

# The relation, and the text before and after the subject.
_Template = tuple[str, str, str]
Integers = NDArray[np.int64]


def loose_template(fact: Fact) -> _Template:
    """What a fact shares with its possible donors, before it is tokenised."""
    # A tokenizer may move spaces at the end of a prompt to the answers.
    relation, before, after = _template(fact)
    return relation, before, after.rstrip()


class PossibleDonors:
    """Which facts of a source that a run lacks may be donors of those that it has.

    Args:
        by_name: Whether rows name their donors.
    """

    def __init__(self, *, by_name: bool) -> None:
        self._by_name = by_name
        self._own: set[int | str] = set()
        self._named: set[int | str] = set()
        self._templates: set[_Template] = set()

    def add(self, fact: Fact, donor_id: int | str | None) -> None:
        """Adds a fact of the run, and the donor that its row names."""
        self._own.add(fact.id)
        if donor_id is not None:
            self._named.add(donor_id)
        if not self._by_name:
            self._templates.add(loose_template(fact))

    def has(self, fact: Fact) -> bool:
        """Whether a fact may be a donor and is not of the run. Needs all facts of the run."""
        if fact.id in self._own:
            return False
        return fact.id in self._named if self._by_name else loose_template(fact) in self._templates


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
    prompts, places = _first_of_each_fact((*contrasts, *others))
    features = DonorFeatures.of([features_of(contrast, seed) for contrast in prompts])
    donors_P = choose_donors(features)
    return _given(contrasts, places, prompts, donors_P, reasons_without(features, np.flatnonzero(donors_P < 0)))


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
    prompts, places = _first_of_each_fact((*contrasts, *others))
    own = {contrast.fact.id for contrast in contrasts}
    ids = [contrast.fact.id for contrast in prompts]
    named = [donor_ids[each] if each in own else each for each in ids]
    counts_P3 = np.array([counts_of(contrast) for contrast in prompts], dtype=np.int64).reshape(-1, 3)
    donors_P, reasons = find_named_donors(ids, named, counts_P3)
    return _given(contrasts, places, prompts, donors_P, reasons)


def counts_of(contrast: Contrast) -> tuple[int, int, int]:
    """How many tokens of a prompt there are before, in and after the subject."""
    start, stop = contrast.subject_span
    return start, stop - start, len(contrast.prompt_ids) - stop


class Features(NamedTuple):
    """What decides on the donor of a fact.

    Attributes:
        template: A hash of the fact's relation and of the text around its subject, of 16 bytes.
        true: A hash of the seed and the true answer, of 32 bytes: the order of answers.
        false: The same of the false answer.
        prompt: A hash of the prompt's tokens, of 16 bytes.
        fact: A hash of the seed and the fact's id, of 32 bytes. It says where the search for the fact's donor
            starts, and orders facts with one answer.
        counts: How many tokens there are before, in and after the subject.
    """

    template: bytes
    true: bytes
    false: bytes
    prompt: bytes
    fact: bytes
    counts: tuple[int, int, int]


# The hashes among them and their bytes, in their order.
HASHES = {"template": 16, "true": 32, "false": 32, "prompt": 16, "fact": 32}


def features_of(contrast: Contrast, seed: int) -> Features:
    """What decides on the donor of a contrast's fact."""
    fact = contrast.fact
    return Features(
        hashlib.sha256(repr(_template(fact)).encode("utf-8", "surrogatepass")).digest()[:16],
        _hash(seed, "answer", _answer(fact.target_true)),
        _hash(seed, "answer", _answer(fact.target_false)),
        hashlib.sha256(repr(contrast.prompt_ids).encode()).digest()[:16],
        _hash(seed, "fact", fact.id),
        counts_of(contrast),
    )


class DonorFeatures(NamedTuple):
    """The features of many facts in arrays; equal numbers stand for what is equal.

    Attributes:
        templates_P: The template.
        true_P: The true answer. The numbers are in the order of the answers' hashes.
        false_P: The false answer, likewise.
        prompts_P: The prompt's tokens.
        counts_P3: How many tokens there are before, in and after the subject.
        facts_PB: uint8, the hash of each fact.
    """

    templates_P: Integers
    true_P: Integers
    false_P: Integers
    prompts_P: Integers
    counts_P3: Integers
    facts_PB: NDArray[np.uint8]

    @classmethod
    def of(cls, features: Sequence[Features]) -> DonorFeatures:
        """The arrays of single features."""
        columns = {
            "template": b"".join(each.template for each in features),
            "true": b"".join(each.true for each in features),
            "false": b"".join(each.false for each in features),
            "prompt": b"".join(each.prompt for each in features),
            "fact": b"".join(each.fact for each in features),
        }
        counts_P3 = np.array([each.counts for each in features], dtype=np.int64).reshape(-1, 3)
        return cls.of_columns(columns, counts_P3)

    @classmethod
    def of_columns(cls, columns: Mapping[str, bytes], counts_P3: Integers) -> DonorFeatures:
        """The arrays of hashes one after another, by name."""
        hashes = {name: np.frombuffer(columns[name], dtype=f"S{size}") for name, size in HASHES.items()}
        answers_2P = np.concatenate([hashes["true"], hashes["false"]])
        true_P, false_P = np.split(np.unique(answers_2P, return_inverse=True)[1].reshape(-1), 2)
        templates_P, prompts_P = (
            np.unique(hashes[name], return_inverse=True)[1].reshape(-1) for name in ("template", "prompt")
        )
        facts_PB = np.frombuffer(columns["fact"], dtype=np.uint8).reshape(-1, HASHES["fact"])
        return cls(templates_P, true_P, false_P, prompts_P, counts_P3, facts_PB)

    @property
    def groups_P(self) -> Integers:
        """The number of each fact's group: those with one template and the same counts."""
        forms_P4 = np.column_stack([self.templates_P, self.counts_P3])
        groups_P: Integers = np.unique(forms_P4, axis=0, return_inverse=True)[1].reshape(-1)
        return groups_P


def choose_donors(features: DonorFeatures) -> Integers:
    """The place of each fact's donor, -1 where it has none, see :func:`with_donors`."""
    donors_P = np.full(len(features.true_P), -1, dtype=np.int64)
    groups_P = features.groups_P
    hashes_P = np.ascontiguousarray(features.facts_PB).view(f"S{HASHES['fact']}").reshape(-1)
    ranks_P = np.empty(len(hashes_P), dtype=np.int64)
    ranks_P[np.argsort(hashes_P)] = np.arange(len(hashes_P))
    order_P = np.lexsort((ranks_P, features.true_P, groups_P))
    for places_G in np.split(order_P, np.flatnonzero(np.diff(groups_P[order_P])) + 1):
        donors_P[places_G] = _donors_in_group(features, places_G)
    return donors_P


def _donors_in_group(features: DonorFeatures, places_G: Integers) -> list[int]:
    """The donors of facts with one template and the same counts, which come in the order of answers and hashes."""
    places, true, false, prompts = (
        each.tolist()
        for each in (
            places_G,
            features.true_P[places_G],
            features.false_P[places_G],
            features.prompts_P[places_G],
        )
    )
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    for at, answer in enumerate(true):
        begins.setdefault(answer, at)
        ends[answer] = at + 1
    answers = [*begins]

    def donor_of(own: int) -> int:
        content = features.facts_PB[places[own]].tobytes()
        # Half of the hash for each choice, so that the one says nothing about the other.
        of_answer, of_fact = int.from_bytes(content[:16], "big"), int.from_bytes(content[16:], "big")
        for answer in chain([false[own]], _rotated(answers, of_answer)):
            if answer != true[own] and answer in begins:
                for other in _rotated(range(begins[answer], ends[answer]), of_fact):
                    if prompts[other] != prompts[own]:
                        return int(places[other])
        return -1

    return [donor_of(own) for own in range(len(places))]


def reasons_without(features: DonorFeatures, places: Integers) -> dict[int, str]:
    """Why some facts have no donor, by their places."""
    of_template_P = np.bincount(features.templates_P)[features.templates_P]
    groups_P = features.groups_P
    of_form_P = np.bincount(groups_P)[groups_P]

    def reason(place: int) -> str:
        if of_template_P[place] == 1:
            return "no donor: no other row has its relation and template"
        if of_form_P[place] == 1:
            counts = _in_words(features.counts_P3[place])
            return f"no donor: no other row with its relation and template has {counts}"
        return "no donor: no other row with its template and numbers of tokens has another prompt and true answer"

    return {place: reason(place) for place in places.tolist()}


def find_named_donors(
    ids: Sequence[int | str], named: Sequence[int | str], counts_P3: Integers
) -> tuple[Integers, dict[int, str]]:
    """The place of the donor that each fact names.

    Args:
        ids: The ids of the facts.
        named: The ids of their donors.
        counts_P3: How many tokens there are before, in and after the subject.

    Returns:
        The places, -1 where there is none; and the reason where there is none, by the fact's place.
    """
    donors_P = KeyIndex(hash_keys((each, 0) for each in ids)).find(hash_keys((each, 0) for each in named))
    is_same_P = (counts_P3[donors_P] == counts_P3).all(axis=1) & (donors_P >= 0)
    reasons = {}
    for place in np.flatnonzero(~is_same_P).tolist():
        donor_id = named[place]
        name = shown(donor_id) if isinstance(donor_id, str) else str(donor_id)
        donor, own = donors_P[place], _in_words(counts_P3[place])
        reasons[place] = (
            f"its donor has the id {name}, which no usable row has"
            if donor < 0
            else f"its donor {name} has {_in_words(counts_P3[donor])}; the row itself has {own}"
        )
    return np.where(is_same_P, donors_P, -1), reasons


def _first_of_each_fact(contrasts: Iterable[Contrast]) -> tuple[list[Contrast], dict[int | str, int]]:
    """The first contrast of each fact, and its place by the fact's id."""
    first: dict[int | str, Contrast] = {}
    for contrast in contrasts:
        first.setdefault(contrast.fact.id, contrast)
    return [*first.values()], {each: place for place, each in enumerate(first)}


def _given(
    contrasts: Sequence[Contrast],
    places: Mapping[int | str, int],
    prompts: Sequence[Contrast],
    donors_P: Integers,
    reasons: Mapping[int, str],
) -> tuple[list[Contrast], list[Rejected]]:
    """Puts donors into contrasts; the reasons are those of facts that have none."""
    rejected: dict[int | str, Rejected] = {}
    given: list[Contrast] = []
    for contrast in contrasts:
        fact = contrast.fact
        place = places[fact.id]
        if donors_P[place] < 0:
            rejected.setdefault(fact.id, Rejected(fact.row, fact.id, reasons[place]))
            continue
        donor = prompts[donors_P[place]]
        after_prompt = contrast.token_ids[len(donor.prompt_ids) :]
        given.append(contrast._replace(donor=Donor(donor.fact.id, donor.prompt_ids + after_prompt)))
    return given, [*rejected.values()]


def _template(fact: Fact) -> _Template:
    before, after = fact.prompt[: fact.subject_start], fact.prompt[fact.subject_start + len(fact.subject) :]
    return fact.relation or fact.relation_id, before, after


def _answer(text: str) -> str:
    return normal_form(text.strip())


def _hash(seed: int, kind: str, value: int | str) -> bytes:
    # Another order than that of the run's contrasts: the sample of a run, the first in that order, would have the
    # same few donors.
    return hashlib.sha256(json.dumps([seed, kind, value]).encode()).digest()


def _rotated(values: Sequence[int], number: int) -> Iterator[int]:
    """The values from the place on that the number gives, and then those before it."""
    return (values[(number + step) % len(values)] for step in range(len(values)))


def _in_words(counts: Iterable[int]) -> str:
    return "{}, {} and {} tokens before, in and after the subject".format(*counts)
