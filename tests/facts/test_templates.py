"""Prompts from templates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lit_attr.cli import main
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import RowError, UserError
from lit_attr.facts.rows import parse_fact, read_facts
from lit_attr.facts.templates import parse_template

ROW = {
    "prompt": "The capital of Spain is",
    "relation": "The capital of {} is",
    "subject": "Spain",
    "target_true": "Madrid",
    "target_false": "Rome",
    "year": 1994,
    "hint": "Not in France",
}


@pytest.mark.parametrize(
    ("template", "row", "prompt", "start"),
    [
        ("Q: {prompt} A:", {}, "Q: The capital of Spain is A:", 18),
        ("{prompt}", {}, ROW["prompt"], 15),
        # As the row's own prompt is made where it has none.
        ("Q: {prompt}", {"prompt": None}, "Q: The capital of Spain is", 18),
        ("Q: {relation}", {"prompt": None}, "Q: The capital of Spain is", 18),
        ("The {relation} {subject} is", {"relation": "capital of"}, "The capital of Spain is", 15),
        ("{subject}: in {year}, its {{capital}} was", {}, "Spain: in 1994, its {capital} was", 0),
        # Of several occurrences, the one in the sentence about the subject.
        ("{subject}. {prompt}", {}, "Spain. The capital of Spain is", 22),
        ("{subject}. {relation}", {}, "Spain. The capital of Spain is", 22),
        # The answer continues the last copy; those before it are context.
        ("{prompt} {prompt}", {}, "The capital of Spain is The capital of Spain is", 39),
        ("{prompt}\n{prompt}", {"relation": None}, "The capital of Spain is\nThe capital of Spain is", 39),
        ("{relation}; {relation}", {}, "The capital of Spain is; The capital of Spain is", 40),
        ("On {subject}: {subject} has the capital", {}, "On Spain: Spain has the capital", 10),
        # The field of the template, not the same word before it.
        ("Spain! {subject} has the capital", {}, "Spain! Spain has the capital", 7),
        # Not a field, but part of the text.
        ("{hint}, Spain has the capital", {}, "Not in France, Spain has the capital", 15),
        ("Q: {prompt}", {"subject": " Spain "}, "Q: The capital of Spain is", 18),
        # A value is not a template itself.
        ("{hint} {subject}", {"hint": "{subject}"}, "{subject} Spain", 10),
    ],
)
def test_a_row_is_filled_into_the_template(template: str, row: dict[str, Any], prompt: str, start: int):
    fact = parse_fact({**ROW, **row}, 0, parse_template(template))
    assert (fact.prompt, fact.subject_start) == (prompt, start)
    assert fact.prompt[start:].startswith(fact.subject)


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        ("{prompt} {hint}", {"hint": None}, "'hint' is missing"),
        ("{prompt} {hint}", {"hint": 0.5}, "'hint' is float, not text"),
        ("{prompt} {hint}", {"hint": "a\x00b"}, "'hint' has the control character U+0000"),
        ("{hint} it is", {}, "the subject 'Spain' is not in the prompt 'Not in France it is'"),
        ("Q: {prompt}", {"prompt": None, "relation": None}, "'prompt' is missing, and so is 'relation'"),
        ("Q: {relation}", {"relation": None}, "'relation' is missing"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(template: str, row: dict[str, Any], message: str):
    with pytest.raises(RowError) as raised:
        parse_fact({**ROW, **row}, 0, parse_template(template))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("The capital of {} is", "in 'The capital of {} is', {} does not name a column; write {column} for a"),
        ("{subject!r} is", "{subject!r} does not name a column"),
        ("{year:5} is", "{year:5} does not name a column"),
        ("{subject.__class__} is", "{subject.__class__} does not name a column"),
        ("{subject[0]} is", "{subject[0]} does not name a column"),
        ("{subject is", "'{subject is' cannot be read (expected '}' before end of string); write"),
        ("subject} is", "'subject} is' cannot be read (Single '}' encountered in format string); write"),
        ("The capital is", "'The capital is' names no column, so all prompts would be the same; write"),
        ("", "'' names no column"),
    ],
)
def test_an_invalid_template_is_refused(template: str, message: str):
    with pytest.raises(UserError) as raised:
        CounterfactDataModule([ROW], template=template)
    assert str(raised.value).startswith("data.template: ") and message in str(raised.value)


def test_an_unknown_column_is_reported_with_the_known_ones():
    with pytest.raises(UserError, match="^template: there is no column 'yaer'; the columns are hint, prompt"):
        read_facts([ROW, ROW], template=parse_template("{prompt} {yaer}"))
    # Where some rows have the column, only the others are refused.
    table = read_facts([ROW, {**ROW, "more": "x"}], template=parse_template("{prompt} {more}"))
    assert [(each.row, each.reason) for each in table.rejected] == [(0, "'more' is missing")]


def test_rows_need_no_prompt_if_the_template_has_none():
    rows = [{"country": "Spain", "capital": "Madrid", "other": "Rome"}]
    columns = {"subject": "country", "target_true": "capital", "target_false": "other"}
    for template in ("The capital of {subject} is", "The capital of {country} is"):
        (fact,) = read_facts(rows, columns=columns, template=parse_template(template)).facts
        assert (fact.prompt, fact.subject_start) == ("The capital of Spain is", 15)
    with pytest.raises(UserError, match="^rows: no column prompt; the columns are capital, country, other"):
        read_facts(rows, columns=columns, template=parse_template("Q: {prompt}"))


def test_nested_rows_of_counterfact_fill_a_template():
    rewrite = {
        "prompt": "The capital of {} is",
        "subject": "Spain",
        "target_true": {"str": "Madrid"},
        "target_new": {"str": "Rome"},
    }
    (fact,) = read_facts([{"requested_rewrite": rewrite}], template=parse_template("Q: {prompt} A:")).facts
    assert (fact.prompt, fact.subject_start) == ("Q: The capital of Spain is A:", 18)


def test_a_prompt_twice_labels_the_copy_that_the_answer_continues(tokenizer: PreTrainedTokenizerBase):
    once, twice = (
        CounterfactDataModule([ROW], tokenizer, template=each) for each in ("{prompt}", "{prompt} {prompt}")
    )
    for data in (once, twice):
        data.setup()
    roles, expected = twice.contrasts[0].roles, once.contrasts[0].roles
    behind = len(expected) - expected.index("last subject")
    assert roles[-behind:] == expected[-behind:]
    assert set(roles[: len(roles) - len(expected)]) == {"prefix"}
    assert roles.count("last") == roles.count("last subject") == 1


def test_the_data_module_applies_a_template(tokenizer: PreTrainedTokenizerBase):
    plain, made = (CounterfactDataModule([ROW], tokenizer, template=each) for each in (None, "Q: {prompt} A:"))
    for data in (plain, made):
        data.setup()
    assert "".join(made.contrasts[0].tokens) == "Q: The capital of Spain is A:"
    start, stop = made.contrasts[0].subject_span
    assert "".join(made.contrasts[0].tokens[start:stop]) == " Spain"
    assert made.identity()["template"] == "Q: {prompt} A:"
    assert made.identity()["content"] != plain.identity()["content"]


@pytest.mark.parametrize(
    ("template", "begin"), [("Q: {prompt} A:", "Q: "), ("{prompt}", ""), ("[{subject}] {prompt}", "[")]
)
def test_the_command_line_applies_a_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, begin: str
):
    """A template that looks like YAML is taken as text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    main(["predict", *quiet, "--data.limit", "2", "--model.verify", "0", "--data.template", template])
    (path,) = Path("lit_attr_output/batches").iterdir()
    for example in json.loads(path.read_text())["examples"]:
        assert example["prompt"].startswith(begin)
        start, stop = example["subject_span"]
        assert "".join(example["tokens"][start:stop]).strip(" []") == example["subject"]
