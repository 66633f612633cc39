"""Validation of rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lit_attr.errors import UserError
from lit_attr.facts.rows import parse_fact, read_facts

SPAIN = {
    "relation": "The capital of {} is",
    "relation_prefix": "The capital of",
    "relation_suffix": " is",
    "prompt": "The capital of Spain is",
    "relation_id": "P36",
    "target_true_id": "Q2807",
    "target_false_id": "Q90",
    "target_true": " Madrid",
    "target_false": " Paris",
    "subject": "Spain",
}


def test_reads_the_columns_of_counterfact_tracing():
    fact = parse_fact(SPAIN, 7)
    assert (fact.row, fact.id, fact.prompt, fact.subject) == (7, 7, "The capital of Spain is", "Spain")
    assert (fact.target_true, fact.target_false, fact.relation_id) == (" Madrid", " Paris", "P36")
    assert fact.prompt[fact.subject_start :].startswith("Spain is")


def test_reads_raw_counterfact():
    raw = {
        "case_id": 12,
        "pararel_idx": 5,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": [],
    }
    fact = parse_fact(raw, 0)
    assert (fact.row, fact.id, fact.relation_id) == (0, 12, "P103")
    assert fact.prompt == "The mother tongue of Danielle Darrieux is"
    assert (fact.target_true, fact.target_false) == (" French", " English")


def test_builds_a_missing_prompt_from_the_relation():
    row = {name: value for name, value in SPAIN.items() if name != "prompt"}
    assert parse_fact(row, 0).prompt == "The capital of Spain is"


def test_adds_and_counts_missing_leading_spaces():
    table = read_facts([SPAIN, {**SPAIN, "target_true": "Madrid"}, {**SPAIN, "target_false": "Paris"}])
    assert {(fact.target_true, fact.target_false) for fact in table.facts} == {(" Madrid", " Paris")}
    assert table.spaces_added == 2


def test_an_answer_after_a_trailing_space_has_no_leading_one():
    fact = parse_fact({**SPAIN, "prompt": "Spain: ", "target_true": "Madrid"}, 0)
    assert fact.prompt + fact.target_true == "Spain: Madrid"
    assert parse_fact({**SPAIN, "prompt": "Spain: "}, 0) == fact


def test_spaces_after_an_answer_are_dropped():
    table = read_facts([{**SPAIN, "target_true": " Madrid ", "target_false": " Paris\n"}])
    assert (table.facts[0].target_true, table.facts[0].target_false) == (" Madrid", " Paris")
    assert table.spaces_added == 0


def test_the_subject_is_found_as_a_whole_word():
    fact = parse_fact({**SPAIN, "relation": None, "subject": " Ana ", "prompt": "Anatolia is home to Ana and"}, 0)
    assert fact.subject == "Ana"
    assert fact.subject_start == len("Anatolia is home to ")


@pytest.mark.parametrize(
    ("before", "subject"), [("रामायण में ", "राम"), ("cafe\u0301 or ", "cafe"), ("Ana_ and ", "Ana")]
)
def test_vowel_signs_accents_and_underscores_belong_to_a_word(before: str, subject: str):
    row = {**SPAIN, "relation": None, "subject": subject}
    assert parse_fact({**row, "prompt": f"{before}{subject} is"}, 0).subject_start == len(before)
    # Nowhere a whole word: its first occurrence.
    assert parse_fact({**row, "prompt": before}, 0).subject_start == 0


@pytest.mark.parametrize(
    ("relation_id", "expected"), [(None, ""), (float("nan"), ""), (36, "36"), (36.0, "36"), ("P36", "P36")]
)
def test_accepts_every_form_of_relation_id(relation_id: object, expected: str):
    assert parse_fact({**SPAIN, "relation_id": relation_id}, 0).relation_id == expected


def test_refuses_unknown_columns():
    with pytest.raises(UserError, match="^columns: 'promt' is none of prompt, relation"):
        read_facts([SPAIN], columns={"promt": "prompt"})
    with pytest.raises(UserError, match="^columns: there is no column 'question'; the columns are prompt"):
        read_facts(
            [{name: SPAIN[name] for name in ("prompt", "subject", "target_true")}], columns={"id": "question"}
        )


def test_the_relation_decides_which_occurrence_is_the_subject():
    row = {**SPAIN, "relation": "In Nice it is {} to", "prompt": "In Nice it is Nice to", "subject": "Nice"}
    assert parse_fact(row, 0).subject_start == len("In Nice it is ")
    without_template = {**row, "relation": None}
    assert parse_fact(without_template, 0).subject_start == len("In ")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "a/b"}, "a/b"),
        ({"id": "17"}, 17),
        ({"id": "017"}, "017"),
        ({"case_id": 3}, 3),
        ({"id": 17.0}, 17),
        ({"id": np.int64(17)}, 17),
        ({"id": float("nan"), "case_id": 3}, 3),
        ({"id": "", "case_id": None}, 9),
        ({"id": 2**70}, str(2**70)),
        ({"id": -(2**63)}, str(-(2**63))),
    ],
)
def test_the_id_is_the_rows_own(row: dict, expected: int | str):
    assert parse_fact({**SPAIN, **row}, 9).id == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"subject": None}, "'subject' is missing"),
        ({"subject": "  "}, "'subject' is empty"),
        ({"target_true": 3}, "'target_true' is int, not text"),
        ({"target_false": float("nan")}, "'target_false' is float, not text"),
        ({"target_false": "Madrid"}, "the true and the false answer are both ' Madrid'"),
        ({"target_false": "  Madrid "}, "the true and the false answer are both ' Madrid'"),
        ({"subject": "Portugal"}, "the subject 'Portugal' is not in the prompt"),
        ({"prompt": None, "relation": None}, "'prompt' is missing, and so is 'relation'"),
        ({"prompt": None, "relation": float("nan")}, "'prompt' is missing, and so is 'relation'"),
        ({"prompt": None, "relation": "The capital is"}, "'relation' has no {}"),
        ({"prompt": None, "relation": "{} and {}"}, "'relation' has 2 {} for the subject, not one"),
        (
            {"prompt": None, "relation": "{}" + " is" * 33_332},
            "'prompt' has 100,001 characters, more than 100,000",
        ),
        ({"prompt": pd.NA}, "'prompt' is NAType, not text"),
        ({"relation": []}, "'relation' is list, not text"),
        ({"relation": pd.NA}, "'relation' is NAType, not text"),
        ({"relation": np.zeros(2)}, "'relation' is ndarray, not text"),
        ({"relation": 5}, "'relation' is int, not text"),
        ({"relation_id": ["P36"]}, "'relation_id' is list, not text"),
        ({"relation_id": pd.NA}, "'relation_id' is NAType, not text"),
        ({"relation_id": np.zeros(2)}, "'relation_id' is ndarray, not text"),
        ({"relation_id": 10**5000}, "'relation_id' has more than 1,000 digits"),
        ({"id": True}, "'id' is bool, not a whole number or text"),
        ({"id": 1.5}, "'id' is float, not a whole number or text"),
        ({"id": [1], "case_id": 3}, "'id' is list, not a whole number or text"),
        ({"id": 10**5000}, "'id' has more than 1,000 digits"),
        ({"case_id": "x" * 1001}, "'case_id' has 1,001 characters, more than 1,000"),
        ({None: [" Rome"]}, "it has more cells than there are columns"),
        ({"prompt": "The capital of \ud800 Spain is"}, "'prompt' is not Unicode text"),
        ({"id": "\ud800"}, "'id' is not Unicode text"),
        ({"target_true": " Mad\x7frid"}, "'target_true' has the control character U+007F"),
        ({"id": "\x00"}, "'id' has the control character U+0000"),
        ({"subject": "x" * 100_001}, "'subject' has 100,001 characters, more than 100,000"),
    ],
)
def test_rejects_a_row_with_the_reason(change: dict, reason: str):
    table = read_facts([{**SPAIN, **change}])
    assert not table.facts
    assert reason in table.rejected[0].reason


def test_rejected_rows_do_not_end_the_reading():
    table = read_facts([SPAIN, {**SPAIN, "id": "x", "subject": None}, SPAIN])
    assert [fact.row for fact in table.facts] == [0, 2]
    assert [(row.row, row.id) for row in table.rejected] == [(1, "x")]


@pytest.mark.parametrize("row", [None, 7, "The capital of Spain is", [SPAIN], b"", float("nan")])
@pytest.mark.parametrize("columns", [None, {"id": "id"}])
def test_rejects_what_is_not_a_row_of_named_columns(row: object, columns: dict[str, str] | None):
    table = read_facts([{**SPAIN, "id": 5}, row], columns=columns)
    assert [fact.id for fact in table.facts] == [5]
    assert table.rejected == [(1, 1, f"a {type(row).__name__}, not a row of named columns", None)]


def test_a_rejected_row_counts_towards_the_limit():
    table = read_facts([None, {**SPAIN, "subject": None}, SPAIN, SPAIN], limit=3)
    assert [row.row for row in table.rejected] == [0, 1]
    assert [fact.row for fact in table.facts] == [2]


def test_a_rejected_row_keeps_its_own_id_as_far_as_it_can_be_shown():
    ids = ["x" * 2000, "\ud800", 10**5000, ["a"], 8]
    table = read_facts([SPAIN, *({**SPAIN, "id": own, "subject": None} for own in ids)])
    assert [row.id for row in table.rejected] == ["x" * 100, "\ud800", 3, 4, 8]


def test_rejects_an_id_of_an_earlier_row():
    table = read_facts([{**SPAIN, "id": 4}, {**SPAIN, "id": 4}, {**SPAIN, "id": "4"}, {**SPAIN, "id": 4.0}])
    assert len(table.facts) == 1
    assert {row.reason for row in table.rejected} == {"an earlier row has the id 4"}
    table = read_facts([{**SPAIN, "id": "x" * 1000}] * 2)
    assert table.rejected[0].reason == f"an earlier row has the id '{'x' * 100}'..."


def test_limits_and_filters():
    rows = [{**SPAIN, "relation_id": relation} for relation in ("P36", "P17", "P36", "P36")]
    assert [fact.row for fact in read_facts(rows, relation_ids=["P36"], limit=2).facts] == [0, 2]


def test_renames_columns():
    row = {"question": SPAIN["prompt"], "about": "Spain", "yes": "Madrid", "no": "Paris"}
    columns = {"prompt": "question", "subject": "about", "target_true": "yes", "target_false": "no"}
    assert read_facts([row], columns=columns).facts[0].target_true == " Madrid"


@pytest.mark.parametrize("missing", ["subject", "target_true", "target_false"])
def test_names_a_missing_column(missing: str):
    row = {name: value for name, value in SPAIN.items() if name != missing}
    with pytest.raises(
        UserError,
        match=rf"no column {missing}; the columns are prompt, .*; name yours in the setting columns, as ",
    ):
        read_facts([row])


def test_lists_strange_column_names_in_one_line():
    with pytest.raises(UserError) as refused:
        read_facts([{"a\nb": 1, "\0": 2, 3: 4, **{f"column {number}": 0 for number in range(200)}}])
    assert (
        "no column subject, target_false, target_true, prompt; the columns are '\\x00', 'a\\nb', 3, column 0"
        in str(refused.value)
    )
    assert str(refused.value).isprintable() and len(str(refused.value)) < 700


def test_refuses_a_source_without_rows():
    with pytest.raises(UserError, match="there are no rows"):
        read_facts([])
    with pytest.raises(UserError, match=r"there are no rows with relation_id in \['P1'\]"):
        read_facts([SPAIN], relation_ids=["P1"])
