"""Prompts: a row's own, or one made from a template with columns of the row in it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any, NamedTuple

from lit_attr.errors import ArgumentError, RowError, shown
from lit_attr.facts.cells import MAX_CHARACTERS, checked_text, is_empty, printable, required_text, whole_number

# Longer words are looked for in linear time, at the price of a slower start.
MAX_SHORT_CHARACTERS = 64
# Unicode's Stream-Safe Text Format has no more combining marks in a row. Python orders them in quadratic time.
MAX_MARKS_IN_A_ROW = 30


class Prompt(NamedTuple):
    """A prompt, and where its subject stands.

    Attributes:
        text: The prompt.
        start: The character at which the subject begins, or -1 where the subject is not in the prompt.
        subject: The subject as it stands in the prompt, without spaces around it.
    """

    text: str
    start: int
    subject: str


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
            The text, and the character at which each column begins for the last time: the answer continues that
            occurrence, and the earlier ones are the context before it.
        """
        parts: list[str] = []
        begins: dict[str, int] = {}
        length = 0
        for stretch, column in self.pieces:
            parts.append(stretch)
            length += len(stretch)
            if column is not None:
                begins[column] = length
                parts.append(values[column])
                length += len(values[column])
        return "".join(parts), begins


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
            reason = f"in {shown(template)}, {printable(field)} does not name a column; {fix}"
            raise ArgumentError("template", reason)
    result = Template(tuple((stretch, column) for stretch, column, _, _ in parsed))
    if not result.columns:
        reason = f"{shown(template)} names no column, so all prompts would be the same; {fix}"
        raise ArgumentError("template", reason)
    return result


def prompt_of(row: Mapping[str, Any], subject: str, template: Template | None = None) -> Prompt:
    """Makes the prompt of a row.

    Args:
        row: Column name to value, in our names.
        subject: The row's subject. The prompt may spell it in another of Unicode's normal forms.
        template: Makes the prompt from the row's columns; None takes the row's `prompt`, or what its `relation`
            makes with the subject for `{}`.

    Raises:
        RowError: A cell that the prompt needs cannot be used.
    """
    return _own_prompt(row, subject) if template is None else _filled_prompt(template, row, subject)


def _own_prompt(row: Mapping[str, Any], subject: str) -> Prompt:
    relation = "" if is_empty(row.get("relation")) else required_text(row, "relation")
    fields = relation.count("{}")
    if row.get("prompt") is not None:
        prompt = required_text(row, "prompt")
    elif not relation:
        raise RowError("'prompt' is missing, and so is 'relation' to build it from")
    elif fields != 1:
        raise RowError(f"'relation' has {fields or 'no'} {{}} for the subject, not one, and 'prompt' is missing")
    else:
        prompt = _fill_relation(relation, subject)
    if fields == 1:
        # Where the subject occurs several times, the one at the place that the relation gives it.
        begin = relation.index("{}") + len(subject) - len(subject.lstrip())
        filled = relation.replace("{}", subject)
        if prompt == filled:
            return Prompt(prompt, begin, subject.strip())
        if not prompt.isascii() and normal_form(prompt) == normal_form(filled) and (composed := _compose(prompt)):
            through = filled[: begin + len(subject.strip())]
            return composed.prompt(len(normal_form(filled[:begin])), len(normal_form(through)))
    return _find_subject(subject.strip(), prompt)


def _fill_relation(relation: str, subject: str) -> str:
    length = len(relation) + relation.count("{}") * (len(subject) - 2)
    if length > MAX_CHARACTERS:
        raise RowError(f"'prompt' has {length:,} characters, more than {MAX_CHARACTERS:,}")
    return relation.replace("{}", subject)


def _filled_prompt(template: Template, row: Mapping[str, Any], subject: str) -> Prompt:
    values: dict[str, str] = {}
    found: dict[str, Prompt] = {}  # the subject within a column's value
    for column in template.columns:
        if column == "prompt":
            found[column] = _own_prompt(row, subject)
            values[column] = found[column].text
        elif column == "relation":
            relation = required_text(row, column)
            values[column] = _fill_relation(relation, subject.strip())
            found[column] = Prompt(values[column], relation.find("{}"), subject.strip())
        elif column == "subject":
            values[column] = subject.strip()
            found[column] = Prompt(values[column], 0, values[column])
        else:
            number = whole_number(row.get(column), column)
            values[column] = required_text(row, column) if number is None else str(number)
    text, begins = template.fill(values)
    prompt = checked_text(text, "prompt")
    # Where the subject occurs several times, the one in a sentence about it counts.
    for column in ("prompt", "relation", "subject"):
        if column in found and found[column].start >= 0:
            return Prompt(prompt, begins[column] + found[column].start, found[column].subject)
    return _find_subject(subject.strip(), prompt)


def _find_subject(subject: str, text: str) -> Prompt:
    """Finds the subject as it is written; else as equal text, such as `é` as one character or as two."""
    start = _find_word(subject, text)
    if start < 0 and not text.isascii() and (composed := _compose(text)):
        wanted = normal_form(subject)
        found = _find_word(wanted, composed.text)
        if found >= 0:
            return composed.prompt(found, found + len(wanted))
    return Prompt(text, start, subject)


class _Composed(NamedTuple):
    """A text in Unicode's normal form C.

    Attributes:
        source: The text as it is.
        text: The text in normal form C.
        begins: For each character of `text`, where the characters of `source` that it stands for begin.
        ends: Where they end.
    """

    source: str
    text: str
    begins: list[int]
    ends: list[int]

    def prompt(self, start: int, stop: int) -> Prompt:
        """The source as a prompt whose subject is `text[start:stop]`."""
        begin = self.begins[min(start, stop - 1)]
        return Prompt(self.source, begin, self.source[begin : self.ends[stop - 1]])


def _compose(text: str) -> _Composed | None:
    """The text in normal form C, with offsets; None where it has too many marks in a row to be any language's."""
    if _has_long_marks(text):
        return None
    if unicodedata.is_normalized("NFC", text):
        return _Composed(text, text, [*range(len(text))], [*range(1, len(text) + 1)])
    parts: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    start = 0
    for stop in range(1, len(text) + 1):
        if stop < len(text) and _interact(text[start:stop], text[stop]):
            continue
        part = unicodedata.normalize("NFC", text[start:stop])
        parts.append(part)
        begins += range(start, stop) if len(part) == stop - start else [start] * len(part)
        ends += range(start + 1, stop + 1) if len(part) == stop - start else [stop] * len(part)
        start = stop
    return _Composed(text, "".join(parts), begins, ends)


def _interact(before: str, character: str) -> bool:
    """Whether normalisation changes a character together with those before it."""
    if character.isascii():
        return False
    if unicodedata.combining(character):
        return True
    apart = unicodedata.normalize("NFC", before) + unicodedata.normalize("NFC", character)
    return unicodedata.normalize("NFC", before + character) != apart


def normal_form(text: str) -> str:
    """The text in Unicode's normal form C; as it is where it has too many marks in a row to be any language's."""
    return text if _has_long_marks(text) else unicodedata.normalize("NFC", text)


def _has_long_marks(text: str) -> bool:
    if text.isascii():
        return False
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > MAX_MARKS_IN_A_ROW:
            return True
    return False


def _find_word(word: str, text: str) -> int:
    """Where the word first stands by itself in the text; else where it first occurs at all; else -1."""
    first = -1
    for start in _occurrences(word, text):
        first = start if first < 0 else first
        end = start + len(word)
        if not any(map(_is_in_word, text[max(0, start - 1) : start] + text[end : end + 1])):
            return start
    return first


def _occurrences(word: str, text: str) -> Iterator[int]:
    """Where the word occurs in the text, in order, overlaps included."""
    start = text.find(word)
    if len(word) <= MAX_SHORT_CHARACTERS or start < 0:
        while start >= 0:
            yield start
            start = text.find(word, start + 1)
        return
    yield start
    # The algorithm of Knuth, Morris and Pratt: a text that repeats itself takes no longer than another.
    borders = [0] * len(word)
    matched = 0
    for place in range(1, len(word)):
        while matched and word[place] != word[matched]:
            matched = borders[matched - 1]
        matched += word[place] == word[matched]
        borders[place] = matched
    matched = 0
    for place in range(start + 1, len(text)):
        while matched and text[place] != word[matched]:
            matched = borders[matched - 1]
        matched += text[place] == word[matched]
        if matched == len(word):
            yield place - len(word) + 1
            matched = borders[matched - 1]


def _is_in_word(character: str) -> bool:
    # Marks too: the vowel signs of many scripts are part of their words, and \w does not match them.
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
