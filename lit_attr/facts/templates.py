"""Prompts: a row's own, or one made from a template with columns of the row in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from string import Formatter
from typing import Any, NamedTuple

from lit_attr.errors import ArgumentError, RowError, shown
from lit_attr.facts.cells import checked_text, is_empty, required_text, whole_number


class Template(NamedTuple):
    """A text with fields for columns.

    Attributes:
        pieces: Stretches of text, each with the column that follows it, or None after the last.
    """

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def fill(self, values: Mapping[str, str]) -> tuple[str, dict[str, int]]:
        """Fills in the values of a row.

        Returns:
            The text, and the character at which each column begins for the first time.
        """
        text, begins = "", dict[str, int]()
        for stretch, column in self.pieces:
            text += stretch
            if column is not None:
                begins.setdefault(column, len(text))
                text += values[column]
        return text, begins


def parse_template(template: str) -> Template:
    """Parses a template such as `Q: {prompt} A:`; `{{` and `}}` stand for braces.

    Raises:
        ArgumentError: A brace is unbalanced, a field is not a plain column name, or there is no field.
    """
    fix = "write {column} for a column, and {{ or }} for a brace"
    try:
        parsed = [*Formatter().parse(template)]
    except ValueError as error:
        raise ArgumentError("template", f"{shown(template)} cannot be read ({error}); {fix}") from error
    for _, column, spec, conversion in parsed:
        if column is not None and (spec or conversion or not column.strip() or set(column) & set(".[")):
            field = f"{{{column}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            raise ArgumentError("template", f"in {shown(template)}, {field} does not name a column; {fix}")
    result = Template(tuple((stretch, column) for stretch, column, _, _ in parsed))
    if not result.columns:
        reason = f"{shown(template)} names no column, so all prompts would be the same; {fix}"
        raise ArgumentError("template", reason)
    return result


def prompt_of(row: Mapping[str, Any], subject: str, template: Template | None = None) -> tuple[str, int]:
    """Makes the prompt of a row.

    Args:
        row: Column name to value, in our names.
        subject: The row's subject.
        template: Makes the prompt from the row's columns; None takes the row's `prompt`, or what its `relation`
            makes with the subject for `{}`.

    Returns:
        The prompt, and the character at which the subject begins in it, or -1.

    Raises:
        RowError: A cell that the prompt needs cannot be used.
    """
    return _own_prompt(row, subject) if template is None else _filled_prompt(template, row, subject)


def _own_prompt(row: Mapping[str, Any], subject: str) -> tuple[str, int]:
    relation = "" if is_empty(row.get("relation")) else required_text(row, "relation")
    fields = relation.count("{}")
    if row.get("prompt") is not None:
        prompt = required_text(row, "prompt")
    elif not relation:
        raise RowError("'prompt' is missing, and so is 'relation' to build it from")
    elif fields != 1:
        raise RowError(f"'relation' has {fields or 'no'} {{}} for the subject, not one, and 'prompt' is missing")
    else:
        prompt = checked_text(relation.replace("{}", subject), "prompt")
    if fields == 1 and prompt == relation.replace("{}", subject):
        return prompt, relation.index("{}") + len(subject) - len(subject.lstrip())
    return prompt, _find_word(subject.strip(), prompt)


def _filled_prompt(template: Template, row: Mapping[str, Any], subject: str) -> tuple[str, int]:
    values: dict[str, str] = {}
    offsets: dict[str, int] = {}  # of the subject within a column's value
    for column in template.columns:
        if column == "prompt":
            values[column], offsets[column] = _own_prompt(row, subject)
        elif column == "relation":
            relation = required_text(row, column)
            values[column], offsets[column] = relation.replace("{}", subject.strip()), relation.find("{}")
        elif column == "subject":
            values[column], offsets[column] = subject.strip(), 0
        else:
            number = whole_number(row.get(column), column)
            values[column] = required_text(row, column) if number is None else str(number)
    prompt, begins = template.fill(values)
    # Where the subject occurs several times, the one in a sentence about it counts.
    for column in ("prompt", "relation", "subject"):
        if offsets.get(column, -1) >= 0:
            return checked_text(prompt, "prompt"), begins[column] + offsets[column]
    return checked_text(prompt, "prompt"), _find_word(subject.strip(), prompt)


def _find_word(word: str, text: str) -> int:
    """Where the word first stands by itself in the text; else where it first occurs at all; else -1."""
    start = first = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not any(map(_is_in_word, text[:start][-1:] + text[end : end + 1])):
            return start
        start = text.find(word, start + 1)
    return first


def _is_in_word(character: str) -> bool:
    # Marks too: the vowel signs of many scripts are part of their words, and \w does not match them.
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
