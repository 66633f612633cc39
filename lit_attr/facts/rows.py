"""A fact: one validated row in the columns of `NeelNanda/counterfact-tracing`."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any, NamedTuple

from lit_attr.errors import RowError, UserError, shown
from lit_attr.facts.templates import Template

# Longer ones are broken rows: no fact takes so much, and a tokenizer would take minutes.
MAX_CHARACTERS = 100_000
# Of an id, as text or in digits.
MAX_ID_CHARACTERS = 1_000

COLUMNS = ("prompt", "relation", "relation_id", "subject", "target_true", "target_false", "id")
ID_COLUMNS = ("id", "case_id")


class Fact(NamedTuple):
    """One fact as Meng et al. (2022, arXiv:2202.05262) state it in CounterFact.

    Attributes:
        row: The row's number in its source, from 0; -1 where that is not known.
        id: The row's own `id` or `case_id`; where it has none, its row number in the source, or a hash of the fact
            where that is not known.
        prompt: The text the model continues.
        subject: What the prompt is about, as it stands in the prompt, without spaces around it.
        subject_start: Where the subject begins in the prompt, in characters. Where it occurs more than once,
            the place the `relation` template gives it; without a template, the first where it is a whole word.
        target_true: The true answer as it continues the prompt: with its leading space, and none after it.
        target_false: The false answer, likewise.
        relation_id: Wikidata property such as `P36`, or empty.
    """

    row: int
    id: int | str
    prompt: str
    subject: str
    subject_start: int
    target_true: str
    target_false: str
    relation_id: str


class Rejected(NamedTuple):
    """A row, by its number in its source (from 0) and its id, and why there is no record of it."""

    row: int
    id: int | str
    reason: str


class FactTable(NamedTuple):
    """What became of a source's rows.

    Attributes:
        facts: The rows that are facts, in the order of the source.
        rejected: The rows that are not.
        spaces_added: How many facts had an answer without its leading space.
    """

    facts: list[Fact]
    rejected: list[Rejected]
    spaces_added: int


def parse_fact(row: Mapping[str, Any], row_number: int | None, template: Template | None = None) -> Fact:
    """Validates one row, flat as in `counterfact-tracing` or nested as in the raw CounterFact file.

    Args:
        row: Column name to value. `prompt` may be missing where `relation` (with `{}` for the subject) stands.
        row_number: The row's place in its source, from 0; its id where it brings none. None where it is not known.
        template: What makes the prompt of the row's columns, in place of the row's own prompt.

    Raises:
        RowError: It is no row of named columns, a field is missing, empty or not text, the answers are equal, or
            the subject is not in the prompt.
    """
    flat = _flat(row, {})
    subject = _text(flat, "subject")
    prompt, subject_start = _own_prompt(flat, subject) if template is None else _made(template, flat, subject)
    if subject_start < 0:
        raise RowError(f"the subject {shown(subject)} is not in the prompt {shown(prompt)}")
    target_true = continuation(prompt, _text(flat, "target_true"))
    target_false = continuation(prompt, _text(flat, "target_false"))
    if target_true.strip() == target_false.strip():
        raise RowError(f"the true and the false answer are both {shown(target_true)}")
    told = prompt, subject.strip(), subject_start, target_true, target_false, _relation_id(flat)
    if row_number is None:
        return Fact(-1, row_id(flat, hashlib.sha256(repr(told).encode()).hexdigest()[:16]), *told)
    return Fact(row_number, row_id(flat, row_number), *told)


def read_facts(
    rows: Iterable[Mapping[str, Any]],
    *,
    relation_ids: Collection[str] | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    template: Template | None = None,
    numbered: bool = True,
) -> FactTable:
    """Turns rows into facts and reasons.

    Args:
        rows: Rows as `parse_fact` takes them. Whatever else is among them is refused like a row that is no fact.
        relation_ids: Keep only rows of these relations; all where None.
        limit: Take the first so many of the kept rows; all where None.
        columns: Our column name to the name it has in the rows, for those that differ.
        template: What makes the prompts of the rows' columns, by our names or theirs.
        numbered: Whether a row without an id has its number for one; else it is a hash of the fact.

    Raises:
        UserError: A column that every fact or the template needs is in no row at all, or no row is left.
    """
    table = FactTable([], [], 0)
    seen_columns: set[str] = set()
    seen_ids: set[int | str] = set()
    spaces_added = 0
    for row_number, row in enumerate(rows):
        if limit is not None and len(table.facts) + len(table.rejected) >= limit:
            break
        flat: Mapping[str, Any] = {}
        try:
            flat = _flat(row, columns or {})
            seen_columns.update(flat)
            if relation_ids is not None and _relation_id(flat) not in relation_ids:
                continue
            fact = parse_fact(flat, row_number if numbered else None, template)
            if fact.id in seen_ids:
                named = shown(fact.id) if isinstance(fact.id, str) else fact.id
                raise RowError(f"the id {named} stands in an earlier row")
        except RowError as error:
            table.rejected.append(Rejected(row_number, _id_told(flat, row_number), str(error)))
            continue
        seen_ids.add(fact.id)
        table.facts.append(fact)
        spaces_added += any(
            len(answer) > len(flat[column].rstrip())
            for answer, column in ((fact.target_true, "target_true"), (fact.target_false, "target_false"))
        )
    _require_columns(seen_columns, columns or {}, template)
    if not table.facts and not table.rejected:
        wanted = f" with relation_id in {sorted(relation_ids)}" if relation_ids is not None else ""
        raise UserError(f"data.source: there are no rows{wanted}; give a source that has some")
    return table._replace(spaces_added=spaces_added)


def flatten_counterfact(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lifts the nested `requested_rewrite` of the raw CounterFact file into flat columns; others pass as is.

    There `prompt` is the template, `target_true` the true and `target_new` the false answer.
    """
    rewrite = row.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        return row
    flat: dict[str, Any] = {"relation": rewrite.get("prompt")}
    for ours, theirs in (("target_true", "target_true"), ("target_false", "target_new")):
        answer = rewrite.get(theirs)
        flat[ours] = answer.get("str") if isinstance(answer, Mapping) else answer
    flat.update((key, rewrite.get(key)) for key in ("subject", "relation_id"))
    flat.update((key, row[key]) for key in ID_COLUMNS if key in row)
    return flat


def continuation(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt: a space between the two, whichever brings it, and none at the end."""
    answer = answer.rstrip()
    if prompt[-1:].isspace():
        return answer.lstrip()
    return answer if answer[:1].isspace() else f" {answer}"


def row_id(row: Mapping[str, Any], other: int | str) -> int | str:
    """The id a row brings (`id`, else `case_id`), else another. Digits written as text become a number.

    Raises:
        RowError: The id is neither a whole number nor text, or too long.
    """
    for column in ID_COLUMNS:
        value = row.get(column)
        if _is_empty_cell(value):
            continue
        number = _whole_number(value, column)
        if number is not None:
            # JSON readers hold whole numbers in 64 bits.
            return number if abs(number) < 2**63 else str(number)
        if not isinstance(value, str):
            raise RowError(f"{column!r} is {type(value).__name__}, not a whole number or text")
        text = _unicode(value, column, MAX_ID_CHARACTERS)
        digits = text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text
        return int(text) if digits else text
    return other


def _own_prompt(row: Mapping[str, Any], subject: str) -> tuple[str, int]:
    """A row's prompt, or the one its `relation` makes, and where the subject is in it, or -1."""
    relation = "" if _is_empty_cell(row.get("relation")) else _text(row, "relation")
    places = relation.count("{}")
    if row.get("prompt") is not None:
        prompt = _text(row, "prompt")
    elif not relation:
        raise RowError("'prompt' is missing, and so is 'relation' to build it from")
    elif places != 1:
        raise RowError(f"'relation' has {places or 'no'} {{}} for the subject, not one, and 'prompt' is missing")
    else:
        prompt = _unicode(relation.replace("{}", subject), "prompt")
    if places == 1 and prompt == relation.replace("{}", subject):
        return prompt, relation.index("{}") + len(subject) - len(subject.lstrip())
    return prompt, _find_word(subject.strip(), prompt)


def _made(template: Template, row: Mapping[str, Any], subject: str) -> tuple[str, int]:
    """The prompt that a template makes, and where the subject is in it, or -1."""
    values: dict[str, str] = {}
    places: dict[str, int] = {}
    for column in template.columns:
        if column == "prompt":
            values[column], places[column] = _own_prompt(row, subject)
        elif column == "relation":
            relation = _text(row, column)
            values[column], places[column] = relation.replace("{}", subject.strip()), relation.find("{}")
        elif column == "subject":
            values[column], places[column] = subject.strip(), 0
        else:
            number = _whole_number(row.get(column), column)
            values[column] = _text(row, column) if number is None else str(number)
    prompt, begins = template.fill(values)
    # Where the subject comes several times, a sentence about it is the place.
    for column in ("prompt", "relation", "subject"):
        if places.get(column, -1) >= 0:
            return _unicode(prompt, "prompt"), begins[column] + places[column]
    return _unicode(prompt, "prompt"), _find_word(subject.strip(), prompt)


def _id_told(row: Mapping[str, Any], row_number: int) -> int | str:
    """The id a refused row is told by: one that cannot be used as far as it can be shown."""
    try:
        return row_id(row, row_number)
    except RowError:
        texts = [row[column] for column in ID_COLUMNS if isinstance(row.get(column), str)]
        return texts[0][:100] if texts else row_number


def _flat(row: object, columns: Mapping[str, str]) -> Mapping[str, Any]:
    # Whoever hands rows over from Python, or as lines of JSON, can hand over anything.
    if not isinstance(row, Mapping):
        raise RowError(f"a {type(row).__name__}, not a row of named columns")
    if None in row:  # where csv puts them
        raise RowError("it has more cells than there are columns; a text with a comma in it needs quotes")
    return flatten_counterfact(_rename(row, columns) if columns else row)


def _is_empty_cell(value: Any) -> bool:
    # NaN is what tables have in an empty cell.
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)


def _whole_number(value: Any, column: str) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables with empty cells have whole numbers
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    number = int(value)
    if abs(number) >= 10**MAX_ID_CHARACTERS:
        raise RowError(f"{column!r} has more than {MAX_ID_CHARACTERS:,} digits")
    return number


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise RowError(f"{column!r} is missing")
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {type(value).__name__}, not text")
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return _unicode(value, column)


def _unicode(value: str, column: str, most: int = MAX_CHARACTERS) -> str:
    if len(value) > most:
        raise RowError(f"{column!r} has {len(value):,} characters, more than {most:,}")
    for character in value:
        category = unicodedata.category(character)
        if category == "Cs":
            raise RowError(f"{column!r} is not Unicode text (surrogates not allowed)")
        if category == "Cc" and character not in "\t\n\r":
            raise RowError(f"{column!r} has the control character U+{ord(character):04X}")
    return value


def _relation_id(row: Mapping[str, Any]) -> str:
    value = row.get("relation_id")
    if _is_empty_cell(value):
        return ""
    number = _whole_number(value, "relation_id")
    return str(number) if number is not None else _text(row, "relation_id")


def _find_word(word: str, text: str) -> int:
    """Where the word first stands by itself in the text; else where it first stands at all; else -1."""
    start = first = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not any(map(_is_in_word, text[:start][-1:] + text[end : end + 1])):
            return start
        start = text.find(word, start + 1)
    return first


def _is_in_word(character: str) -> bool:
    # Marks too: the vowel signs of many scripts are letters of their words, and \w does not match them.
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _listed(names: set[str]) -> str:
    # A file that is not what it says can have anything for the names of its columns.
    listed = ", ".join(sorted(str(name) if str(name).isprintable() else repr(name) for name in names))
    return listed if len(listed) <= 500 else f"{listed[:500]}..."


def _rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _require_columns(present: set[str], columns: Mapping[str, str], template: Template | None) -> None:
    if not present:
        return
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UserError(f"data.columns: {ours!r} is none of {', '.join(COLUMNS)}")
        if ours not in present:
            raise UserError(f"data.columns: there is no column {theirs!r}; the columns are {_listed(present)}")
    for column in template.columns if template is not None else ():
        if column != "prompt" and column not in present:
            raise UserError(f"data.template: there is no column {column!r}; the columns are {_listed(present)}")
    missing = sorted({"subject", "target_true", "target_false"} - present)
    if (template is None or "prompt" in template.columns) and not {"prompt", "relation"} & present:
        missing.append("prompt")
    if missing:
        raise UserError(
            f"data.source: no column {', '.join(missing)}; the columns are {_listed(present)}; "
            f"name yours with --data.columns '{{{missing[0]}: NAME}}'"
        )
