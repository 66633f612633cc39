"""Which fact is the donor of which."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project import COUNTERFACT, SHARED_DATA
from toys import WORDS, word_tokenizer
from transformers import GPT2TokenizerFast

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import Contrast, Donor
from lit_attr.facts.rows import Fact, FactTable, Rejected, read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.table.donors import PossibleDonors, with_donors, with_named_donors
from lit_attr.facts.tokenization import build_contrasts

CAPITAL = "The capital of {} is"


def row(subject: str, true: str, false: str, relation: str = CAPITAL, **columns: Any) -> dict[str, Any]:
    return {"relation": relation, "subject": subject, "target_true": true, "target_false": false, **columns}


def read(rows: Sequence[Mapping[str, Any]], **settings: Any) -> FactTable:
    return read_facts(rows, with_donors=True, **settings)


def contrasts_of(facts: Any, step: Any = "divergence") -> list[Contrast]:
    contrasts, rejected = build_contrasts(facts, word_tokenizer(), step=step)
    assert not rejected
    return contrasts


def possible_donors(table: FactTable) -> list[Fact]:
    possible = PossibleDonors(by_name=bool(table.donor_ids))
    for fact in table.facts:
        possible.add(fact, table.donor_ids.get(fact.id))
    return [fact for fact in table.pool.values() if possible.has(fact)]


def donors_of(table: FactTable, seed: int = 0) -> dict[Any, Any]:
    """The id of each fact's donor, and the reasons of those that have none."""
    others = contrasts_of(possible_donors(table))
    given, rejected = with_donors(contrasts_of(table.facts), others, seed=seed)
    return {each.fact.id: each.donor.id for each in given} | {each.id: each.reason for each in rejected}


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def test_the_donor_answers_the_false_answer_where_there_is_one():
    rows = [
        row("Spain", "Madrid", "Rome"),
        row("Rica", "Paris", "Madrid"),
        row("Costa", "Rome", "York"),
        row("Orleans", "Paris", "Rome"),
    ]
    found = donors_of(read(rows))
    assert (found[0], found[1], found[3]) == (2, 0, 2)
    # Nobody answers York: the answer is any other than Rome.
    assert found[2] in (0, 1, 3)
    assert {donors_of(read(rows), seed)[2] for seed in range(20)} == {0, 1, 3}


def test_a_donor_has_the_same_relation_template_and_token_counts():
    rows = [
        row("Spain", "Madrid", "Rome"),
        row("Costa Rica", "Rome", "Paris"),  # two tokens in the subject
        row("Rica", "Rome", "Paris", "The City of {} is"),  # another text before it
        row("Costa", "Rome", "Paris", "The capital of {} of"),  # another text after it
        {**row("Orleans", "Rome", "Paris"), "relation": "{} has", "prompt": "The capital of Orleans is"},
    ]
    alone = "no donor: no other row has its relation and template"
    expected = dict.fromkeys((2, 3, 4), alone)
    for fact_id, count in ((0, 1), (1, 2)):
        counts = f"3, {count} and 1 tokens before, in and after the subject"
        expected[fact_id] = f"no donor: no other row with its relation and template has {counts}"
    assert donors_of(read(rows)) == expected


def test_a_donor_has_another_true_answer_and_another_prompt():
    rows = [row("Spain", "Madrid", "Rome"), row("Rica", "Madrid", "Paris"), row("Spain", "Rome", "Paris")]
    none = "no donor: no other row with its template and numbers of tokens has another prompt and true answer"
    # The first has its false answer in the last, which has the same prompt.
    assert donors_of(read(rows)) == {0: none, 1: 2, 2: 1}


def test_rows_without_a_relation_go_by_relation_id():
    rows = [
        {"prompt": f"The capital of {subject} is", "subject": subject, "target_true": true, "target_false": "York"}
        for subject, true in (("Spain", "Madrid"), ("Rica", "Paris"), ("Costa", "Rome"))
    ]
    first, second, third = rows
    assert donors_of(read([first, second])) == {0: 1, 1: 0}
    ids = [{**each, "relation_id": name} for each, name in zip((first, second, third), "aba", strict=True)]
    found = donors_of(read(ids))
    assert (found[0], found[2]) == (2, 0)
    assert found[1] == "no donor: no other row has its relation and template"


def test_the_donors_context_is_its_prompt_and_the_answer_tokens_of_the_contrast():
    """Every step of a fact has the same donor, whatever tokens that one's own answer has."""
    rows = [row("Spain", "New York City", "New Orleans City"), row("Rica", "Rome", "Paris")]
    given, rejected = with_donors(contrasts_of(read(rows).facts, "all"))
    assert not rejected
    prompt = "The capital of Rica is"
    assert [each.donor for each in given] == [
        Donor(1, ids(prompt)),
        Donor(1, ids(f"{prompt} New")),
        Donor(1, ids(f"{prompt} New York")),
        Donor(0, ids("The capital of Spain is")),
    ]
    diverging, _ = with_donors(contrasts_of(read(rows).facts))
    assert diverging[0].donor == Donor(1, ids(f"{prompt} New"))


def test_a_fact_without_a_donor_is_rejected_once_for_all_its_steps():
    rows = [row("Spain", "New York City", "New Orleans City")]
    given, rejected = with_donors(contrasts_of(read(rows).facts, "all"))
    assert (given, rejected) == ([], [Rejected(0, 0, "no donor: no other row has its relation and template")])


SUBJECTS = ("Spain", "Rica", "Costa", "Costa Rica", "New York")
ANSWERS = ("Madrid", "Rome", "Paris", "York", "City", "is")
ROWS = st.lists(
    st.tuples(
        st.sampled_from(SUBJECTS),
        st.lists(st.sampled_from(ANSWERS), min_size=2, max_size=2, unique=True),
        st.sampled_from([CAPITAL, "{} is of"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(0, 9), st.randoms())
def test_donors_are_as_promised_and_do_not_depend_on_the_order_of_rows_or_on_the_limit(
    drawn: list[tuple[str, list[str], str]], seed: int, random: Any
):
    rows = [row(subject, *answers, relation, id=f"r{at}") for at, (subject, answers, relation) in enumerate(drawn)]
    found = donors_of(read(rows), seed)
    by_id = {each["id"]: each for each in rows}
    for fact_id, donor_id in found.items():
        own = by_id[fact_id]
        # Brute force.
        able = {
            each["id"]: each["target_true"]
            for each in rows
            if each["relation"] == own["relation"]
            and each["subject"] != own["subject"]
            and len(each["subject"].split()) == len(own["subject"].split())
            and each["target_true"] != own["target_true"]
        }
        best = {name for name, answer in able.items() if answer == own["target_false"]}
        assert donor_id in (best or able) if able else donor_id.startswith("no donor: ")
    mixed = [*rows]
    random.shuffle(mixed)
    assert donors_of(read(mixed), seed) == found
    for limit in (1, len(rows) // 2 + 1):
        some = donors_of(read(rows, limit=limit), seed)
        assert some == {each["id"]: found[each["id"]] for each in rows[:limit]}


def test_donors_may_be_of_rows_that_the_relation_ids_leave_out():
    rows = [row("Spain", "Madrid", "Rome", relation_id="a"), row("Rica", "Rome", "Paris", relation_id="b")]
    table = read([*rows, {"subject": None}, {**rows[1], "id": 0}], relation_ids=["a"])
    assert ([fact.id for fact in table.facts], table.rejected) == ([0], [])
    assert donors_of(table) == {0: 1}


def digest(*words: int | str) -> bytes:
    return hashlib.sha256(json.dumps(words).encode()).digest()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_choice_is_by_hash(seed: int):
    """Python's own hashes would differ from process to process."""
    subjects = [word for word in WORDS[2:] if word != "[UNK]"]
    answers = ["Madrid"] * 5 + ["Paris"] * 6 + ["Rome"] * 4
    rows = [row(*each, "York") for each in zip(subjects, answers, strict=True)]
    expected = {}
    for at, answer in enumerate(answers):
        first, second = (int(digest(seed, "fact", at).hex()[half], 16) for half in (slice(32), slice(32, 64)))
        order = sorted(["Madrid", "Paris", "Rome"], key=lambda each: digest(seed, "answer", each))
        chosen = order[first % 3] if order[first % 3] != answer else order[(first + 1) % 3]
        able = sorted(
            (other for other in range(15) if answers[other] == chosen), key=lambda x: digest(seed, "fact", x)
        )
        expected[at] = able[second % len(able)]
    assert donors_of(read(rows), seed) == expected
    assert len({*expected.values()}) > 5


@pytest.mark.parametrize(("first", "second"), [("Rome", "Rome"), ("Madrid", "Rome")])
def test_time_does_not_grow_with_the_square_of_the_rows(first: str, second: str):
    """Of 30,000 facts of one form, none or only the last has another answer."""
    fact = contrasts_of(read([row("Spain", "Madrid", "Paris")]).facts)[0]
    many = [
        fact._replace(
            fact=fact.fact._replace(id=at, target_true=first if at < 29_999 else second),
            token_ids=(*fact.token_ids[:3], 1000 + at, *fact.token_ids[4:]),
        )
        for at in range(30_000)
    ]
    started = time.perf_counter()
    given, _ = with_donors(many)
    # A search of all pairs takes minutes.
    assert time.perf_counter() - started < 20
    assert len(given) == (0 if first == second else 30_000)


def named(rows: Sequence[Mapping[str, Any]], **settings: Any) -> tuple[dict[Any, Any], FactTable]:
    table = read(rows, donor_column="donor", **settings)
    others = contrasts_of(possible_donors(table))
    given, rejected = with_named_donors(contrasts_of(table.facts), others, table.donor_ids)
    return {each.fact.id: each.donor for each in given} | {each.id: each.reason for each in rejected}, table


def test_rows_name_their_donors():
    rows = [
        row("Spain", "Madrid", "Rome", donor="b", id="a"),
        row("Rica", "Madrid", "Rome", "The City of {} is", donor="b", id="b"),  # itself
        row("Costa", "Rome", "Paris", donor=7.0, id=3),  # a number in a table with empty cells
        row("Costa Rica", "Rome", "Paris", donor="a", id="7"),
        row("York", "Rome", "Paris", donor="c", id="d"),
        row("York", "Rome", "Paris", donor=None, id="e"),
        row("York", "Rome", "Paris", donor=["a"], id="f"),
    ]
    found, table = named(rows)
    prompt = ids("The City of Rica is")
    assert (found["a"], found["b"]) == (Donor("b", prompt), Donor("b", prompt))
    own, other = (f"3, {count} and 1 tokens before, in and after the subject" for count in (1, 2))
    assert found[3] == f"its donor 7 has {other}; the row itself has {own}"
    assert found[7] == f"its donor 'a' has {own}; the row itself has {other}"
    assert found["d"] == "its donor has the id 'c', which no usable row has"
    assert table.rejected == [
        Rejected(5, "e", "'donor' is empty, so that it names no donor"),
        Rejected(6, "f", "'donor' is list, not a whole number or text"),
    ]


def test_a_named_donor_may_be_beyond_the_limit():
    rows = [row("Spain", "Madrid", "Rome", donor=1), row("Rica", "Rome", "Paris", donor=0)]
    found, table = named(rows, limit=1)
    assert found == {0: Donor(1, ids("The capital of Rica is"))}
    assert [fact.id for fact in table.facts] == [0]


def test_the_column_of_donors_may_stand_beside_a_nested_row():
    nested = {
        "case_id": 4,
        "donor": 4,
        "requested_rewrite": {
            "prompt": CAPITAL,
            "subject": "Spain",
            "target_true": {"str": "Madrid"},
            "target_new": {"str": "Rome"},
        },
    }
    found, _ = named([nested])
    assert found == {4: Donor(4, ids("The capital of Spain is"))}


def test_a_missing_column_of_donors_is_refused():
    with pytest.raises(
        UserError, match="^donor_column: there is no column 'donor'; the columns are relation, subj"
    ):
        named([row("Spain", "Madrid", "Rome")])
    assert not read_facts([row("Spain", "Madrid", "Rome")], donor_column="donor").donor_ids


@pytest.mark.skipif(not COUNTERFACT.exists(), reason="needs the real rows")
def test_most_real_rows_have_a_donor():
    table = read(open_rows(str(COUNTERFACT)), limit=2000)
    tokenizer = GPT2TokenizerFast.from_pretrained(SHARED_DATA / "gpt2-tokenizer")
    contrasts, _ = build_contrasts(table.facts, tokenizer)
    others, _ = build_contrasts(possible_donors(table), tokenizer)
    given, rejected = with_donors(contrasts, others)
    assert len(given) + len(rejected) == 2000
    assert len(given) > 1800
    for contrast in given:
        fact, donor = contrast.fact, table.pool[contrast.donor.id]
        assert donor.relation == fact.relation and donor.target_true != fact.target_true
        assert tuple(tokenizer(donor.prompt).input_ids) == contrast.donor.token_ids
        assert len(contrast.donor.token_ids) == len(contrast.token_ids)
        assert donor.prompt.replace(donor.subject, "{}", 1) == fact.prompt.replace(fact.subject, "{}", 1)
