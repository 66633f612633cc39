"""Subjects in another normal form, very long texts, and characters that a terminal would act on."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from tokenizer_families import FAMILIES, family
from transformers import PreTrainedTokenizerBase

from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import RowError, UserError
from lit_attr.facts.cells import MAX_CHARACTERS, printable
from lit_attr.facts.collator import ContrastCollator
from lit_attr.facts.rows import parse_fact, read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.templates import parse_template
from lit_attr.facts.tokenization import MAX_STEPS, build_contrasts

ROW = {
    "prompt": "The capital of Spain is",
    "subject": "Spain",
    "target_true": "Madrid",
    "target_false": "Paris",
    "relation_id": "P36",
}
# A Latin letter with one mark and with two, Hangul, kana with a voicing mark, Bengali, and a letter-like sign.
SUBJECTS = ["Côte d'Ivoire", "Việt Nam", "한국", "ガーナ", "কোরিয়া", "\u212bngström"]
FORMS = ("NFC", "NFD")


def row(**changes: Any) -> dict[str, Any]:
    return {**ROW, **changes}


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("of_prompt", FORMS)
@pytest.mark.parametrize("of_subject", FORMS)
@pytest.mark.parametrize("text", ["{}", "Ça, the capital of {} is", "{}, été in {}é or {}", "né{} and {} is"])
def test_a_subject_is_found_in_another_normal_form(subject: str, of_prompt: str, of_subject: str, text: str):
    prompt = unicodedata.normalize(of_prompt, text.replace("{}", subject))
    fact = parse_fact(row(prompt=prompt, subject=unicodedata.normalize(of_subject, subject)), 0)
    # As where both are in one form.
    same = parse_fact(row(prompt=prompt, subject=unicodedata.normalize(of_prompt, subject)), 0)
    assert (fact.prompt, fact.subject, fact.subject_start) == (prompt, same.subject, same.subject_start)
    assert prompt[fact.subject_start :].startswith(fact.subject)


@pytest.mark.parametrize("of_prompt", FORMS)
@pytest.mark.parametrize("of_subject", FORMS)
@pytest.mark.parametrize("of_relation", FORMS)
def test_the_relation_places_a_subject_of_any_normal_form(of_prompt: str, of_subject: str, of_relation: str):
    relation, subject = "À Orléans, la ville de {} est", "Orléans"
    prompt = unicodedata.normalize(of_prompt, relation.replace("{}", subject))
    fact = parse_fact(
        row(
            prompt=prompt,
            subject=f" {unicodedata.normalize(of_subject, subject)}",
            relation=unicodedata.normalize(of_relation, "À Orléans, la ville de{} est"),
        ),
        0,
    )
    assert fact.subject_start == prompt.rindex("Orl")
    assert fact.subject == unicodedata.normalize(of_prompt, subject)


@pytest.mark.parametrize("template", ["{hint}: {prompt}", "{prompt}", "{hint} {subject}"])
def test_a_template_keeps_the_offsets_of_another_normal_form(template: str):
    prompt = unicodedata.normalize("NFD", "été: São Tomé is")
    fact = parse_fact(row(prompt=prompt, subject="São Tomé", hint="né"), 0, parse_template(template))
    assert fact.prompt[fact.subject_start :].startswith(fact.subject)
    assert unicodedata.normalize("NFC", fact.subject) == "São Tomé"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_the_tokens_of_a_subject_in_another_normal_form_are_its_own(name: str, form: str):
    other = FORMS[form == "NFC"]
    prompt = unicodedata.normalize(form, "The capital of Zürich é is")
    given = row(prompt=prompt, subject=unicodedata.normalize(other, "Zürich"))
    (contrast,), _ = build_contrasts([parse_fact(given, 0)], family(name))
    start, stop = contrast.subject_span
    assert "".join(contrast.tokens[start:stop]).strip() == unicodedata.normalize(form, "Zürich")


def test_a_part_of_a_syllable_or_of_an_accented_letter_is_not_the_subject():
    for prompt, subject in (
        ("한국은", "하"),
        (unicodedata.normalize("NFD", "한국은"), "하"),
        ("Tomé", "Tome\u0302"),
    ):
        with pytest.raises(RowError, match="is not in the prompt"):
            parse_fact(row(prompt=prompt, subject=subject), 0)


def test_answers_that_are_equal_text_are_refused():
    with pytest.raises(RowError, match="the true and the false answer are both"):
        parse_fact(row(target_true="Málaga", target_false=unicodedata.normalize("NFD", "Málaga")), 0)


LONG = MAX_CHARACTERS - 100
PERIODIC = "ab " * (LONG // 3)
MARKS = "e" + "\u0301\u0323" * (LONG // 2)
LONG_ROWS: dict[str, dict[str, Any]] = {
    "prompt": row(prompt="so " * (LONG // 3) + ROW["prompt"]),
    "prompt of one letter": row(prompt="a" * LONG, subject="a"),
    "prompt without spaces": row(prompt=ROW["prompt"] + "x" * LONG),
    "prompt of spaces": row(prompt=ROW["prompt"] + " " * LONG),
    "prompt of line ends": row(prompt=ROW["prompt"] + "\n" * LONG),
    "prompt in Chinese": row(prompt=ROW["prompt"] + "京" * LONG),
    "prompt of digits": row(prompt=ROW["prompt"] + "1" * LONG),
    "prompt in another form": row(prompt=unicodedata.normalize("NFD", "é한" * (LONG // 5)) + "né", subject="né"),
    "prompt of marks": row(prompt=f"{ROW['prompt']} {MARKS}", subject="Espa\u00f1a"),
    "subject": row(prompt="so " * (LONG // 3) + "is", subject=("so " * (LONG // 3)).strip()),
    "subject that repeats itself": row(prompt=PERIODIC + "is", subject=PERIODIC[: LONG // 2].strip() + " a"),
    "subject of one letter": row(prompt="a" * LONG, subject="a" * (LONG // 2)),
    "answer": row(target_true="so " * (LONG // 3)),
    "answer without spaces": row(target_true="x" * LONG),
    "both answers": row(target_true="so " * (LONG // 3) + "a", target_false="so " * (LONG // 3) + "b"),
    "answers of marks": row(target_true=MARKS, target_false=MARKS + "x"),
    "relation id": row(relation_id="P" * LONG),
    "relation of fields": row(prompt=None, relation="{}" * (LONG // 2), subject="x" * LONG),
    "relation": row(prompt=None, relation="so " * (LONG // 3) + "{} is"),
}


@pytest.mark.parametrize("step", ["divergence", "all"])
@pytest.mark.parametrize("name", LONG_ROWS)
def test_a_text_of_a_hundred_thousand_characters_takes_no_longer_than_its_length(
    tokenizer: PreTrainedTokenizerBase, name: str, step: str
):
    """Reading takes 0.05 s at most, tokenising 2 s; a loop over pairs of characters takes seconds to minutes."""
    began = time.process_time()
    table = read_facts([LONG_ROWS[name]])
    assert time.process_time() - began < 0.7
    assert len(table.facts) + len(table.rejected) == 1
    contrasts, rejected = build_contrasts(table.facts, tokenizer, step=step, max_tokens=64)
    assert contrasts or rejected or table.rejected
    assert all(len(refused.reason) < 1000 for refused in table.rejected + rejected)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("template", ["{relation}", "{prompt} {prompt}", "{relation} {subject}"])
def test_a_template_does_not_multiply_long_texts(template: str):
    given = row(relation="{}" * (LONG // 2), subject="x" * LONG)
    began = time.process_time()
    with pytest.raises(RowError, match="characters, more than 100,000|is not in the prompt"):
        parse_fact(given, 0, parse_template(template))
    assert time.process_time() - began < 2


def test_an_answer_with_too_many_steps_is_refused(tokenizer: PreTrainedTokenizerBase):
    answers = {"target_true": "so " * 2 * MAX_STEPS + "a", "target_false": "so " * 2 * MAX_STEPS + "b"}
    fact = parse_fact(row(**answers), 0)
    contrasts, (rejected,) = build_contrasts([fact], tokenizer, step="all")
    assert not contrasts and f"tokens to compare, more than {MAX_STEPS:,}" in rejected.reason
    assert len(build_contrasts([fact], tokenizer)[0]) == 1


def test_steps_beyond_the_models_positions_are_refused_one_by_one(tokenizer: PreTrainedTokenizerBase):
    fact = parse_fact(row(target_true="Madrid or so", target_false="Paris or so"), 0)
    every, _ = build_contrasts([fact], tokenizer, step="all")
    most = len(every[1].token_ids)
    contrasts, rejected = build_contrasts([fact], tokenizer, step="all", max_tokens=most)
    assert contrasts == every[:2]
    assert [each.reason for each in rejected] == [
        f"step {each.step}: {len(each.token_ids)} tokens, and the model has {most} positions" for each in every[2:]
    ]


ESCAPE = "\x1b[31m\x9b2J\u202e\a"


def of_template(tokenizer: PreTrainedTokenizerBase) -> None:
    CounterfactDataModule([ROW], tokenizer, template=f"{{a{ESCAPE}.b}}")


def of_column(tokenizer: PreTrainedTokenizerBase) -> None:
    read_facts([{f"prompt{ESCAPE}": "x", "subject": "y"}])


def of_columns(tokenizer: PreTrainedTokenizerBase) -> None:
    read_facts([ROW], columns={"id": f"x{ESCAPE}"})


def of_missing_template_column(tokenizer: PreTrainedTokenizerBase) -> None:
    read_facts([ROW], template=parse_template(f"{{prompt}} {{x{ESCAPE}}}"))


def of_relation(tokenizer: PreTrainedTokenizerBase) -> None:
    read_facts([ROW], relation_ids=[f"P{ESCAPE}"])


def of_id(tokenizer: PreTrainedTokenizerBase) -> None:
    CounterfactDataModule([row(id=f"a{ESCAPE}")], tokenizer, strict=True).setup()


def of_id_with_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    CounterfactDataModule([row(id="a\u202eb", target_true=None)], tokenizer, strict=True).setup()


def of_row(tokenizer: PreTrainedTokenizerBase) -> None:
    ContrastCollator(tokenizer)([ESCAPE])


def of_path(tokenizer: PreTrainedTokenizerBase) -> None:
    list(open_rows(f"/none{ESCAPE}.jsonl"))


def of_other_path(tokenizer: PreTrainedTokenizerBase) -> None:
    list(open_rows(f"/none{ESCAPE}"))


def of_split(tokenizer: PreTrainedTokenizerBase) -> None:
    list(open_rows("sample", split=ESCAPE))


def of_separator(tokenizer: PreTrainedTokenizerBase) -> None:
    read_facts([ROW], answer_separator=ESCAPE)


@pytest.mark.parametrize(
    "act",
    [
        of_template,
        of_column,
        of_columns,
        of_missing_template_column,
        of_relation,
        of_id,
        of_id_with_marks,
        of_row,
        of_path,
        of_other_path,
        of_split,
        of_separator,
    ],
)
def test_messages_show_what_a_terminal_would_act_on(
    tokenizer: PreTrainedTokenizerBase, act: Callable[[PreTrainedTokenizerBase], None]
):
    with pytest.raises(UserError) as raised:
        act(tokenizer)
    assert str(raised.value).isprintable()


def test_reasons_show_what_a_terminal_would_act_on(tokenizer: PreTrainedTokenizerBase):
    # Marks that turn the direction of text are no control characters, and stand in facts as they are.
    hostile = "\u202e\u2066\u200f"
    rows = [
        row(id="a", subject=f"x{hostile}"),
        row(id="b", target_true=f"y{hostile}", target_false=f"y{hostile} "),
        row(id="c", target_true=f"{hostile} a", target_false=f"{hostile} a b"),
        row(id=f"d{hostile}"),
        row(id=f"d{hostile}"),
    ]
    table = read_facts(rows)
    _, rejected = build_contrasts(table.facts, tokenizer)
    reasons = [each.reason for each in table.rejected + rejected]
    assert len(reasons) == 4
    assert all(reason.isprintable() for reason in reasons)


def test_printable_text_stays_as_it_is():
    assert printable("Côte 東京 😀") == "Côte 東京 😀"
    assert printable("a\x1b\n\u202e\udce9") == "a\\x1b\\n\\u202e\\udce9"
    assert json.dumps(printable("\udce9"))
