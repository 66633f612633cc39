"""Facts: validated rows in the columns of `NeelNanda/counterfact-tracing`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from lit_attr.errors import ArgumentError, RowError, shown
from lit_attr.facts.cells import ID_COLUMNS, relation_id_of, required_text, row_id, shown_id
from lit_attr.facts.templates import Template, prompt_of

COLUMNS = ("prompt", "relation", "relation_id", "subject", "target_true", "target_false", "id")
MAX_LISTED_CHARACTERS = 500


class Fact(NamedTuple):
    """One fact as Meng et al. (2022, arXiv:2202.05262) state it in CounterFact.

    Attributes:
        row: The row's number in its source, from 0; -1 where it is not known.
        id: The row's own `id` or `case_id`. Without one, its row number in the source, or a hash of the fact where
            the number is not known.
        prompt: The text that the model continues.
        subject: What the prompt is about, as it stands in the prompt, without spaces around it.
        subject_start: The character at which the subject begins in the prompt. Where it occurs more than once, the
            position that the `relation` template gives it; without a template, the first as a whole word.
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
    """A row that has no record, or one contrast of a row.

    Attributes:
        row: The row's number in its source, from 0; -1 where it is not known.
        id: The row's id.
        reason: Why there is no record.
        step: The step of a contrast that was refused while the model ran; None for a row refused before.
    """

    row: int
    id: int | str
    reason: str
    step: int | None = None


class FactTable(NamedTuple):
    """The rows of a source, validated.

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
        row: Column name to value. `prompt` may be missing where there is a `relation` with `{}` for the subject.
        row_number: The row's number in its source, from 0, which is its id where it has none; None where the
            number is not known.
        template: Makes the prompt from the row's columns, in place of the row's own prompt.

    Raises:
        RowError: The row does not map column names to values, a field is missing, empty or not text, the answers
            are equal, or the subject is not in the prompt.
    """
    flat = _flat(row, {})
    subject = required_text(flat, "subject")
    prompt, subject_start = prompt_of(flat, subject, template)
    if subject_start < 0:
        raise RowError(f"the subject {shown(subject)} is not in the prompt {shown(prompt)}")
    target_true = continuation(prompt, required_text(flat, "target_true"))
    target_false = continuation(prompt, required_text(flat, "target_false"))
    if target_true.strip() == target_false.strip():
        raise RowError(f"the true and the false answer are both {shown(target_true)}")
    content = prompt, subject.strip(), subject_start, target_true, target_false, relation_id_of(flat)
    if row_number is None:
        return Fact(-1, row_id(flat, hashlib.sha256(repr(content).encode()).hexdigest()[:16]), *content)
    return Fact(row_number, row_id(flat, row_number), *content)


def read_facts(
    rows: Iterable[Mapping[str, Any]],
    *,
    relation_ids: Collection[str] | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    template: Template | None = None,
    numbered: bool = True,
) -> FactTable:
    """Validates rows; each becomes a fact, or is rejected with a reason.

    Args:
        rows: Rows as `parse_fact` takes them. Anything else among them is rejected like an invalid row.
        relation_ids: Keep only rows of these relations; None keeps all.
        limit: Take only the first so many of the kept rows; None takes all.
        columns: Our column name to the name in the rows, for columns whose names differ.
        template: Makes the prompts from the rows' columns, by our names or theirs.
        numbered: Whether the id of a row without one is its number; otherwise it is a hash of the fact.

    Raises:
        ArgumentError: No row has a column that every fact or the template needs, or no row is left.
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
            if relation_ids is not None and relation_id_of(flat) not in relation_ids:
                continue
            fact = parse_fact(flat, row_number if numbered else None, template)
            if fact.id in seen_ids:
                raise RowError(
                    f"an earlier row has the id {shown(fact.id) if isinstance(fact.id, str) else fact.id}"
                )
        except RowError as error:
            table.rejected.append(Rejected(row_number, shown_id(flat, row_number), str(error)))
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
        raise ArgumentError("rows", f"there are no rows{wanted}; give a source that has some")
    return table._replace(spaces_added=spaces_added)


def flatten_counterfact(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moves the nested `requested_rewrite` of the raw CounterFact file into flat columns; other rows pass as is.

    In that file `prompt` is the relation template, `target_true` the true and `target_new` the false answer.
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
    """The answer as it continues the prompt: with a space between the two, and none at the end."""
    answer = answer.rstrip()
    if prompt[-1:].isspace():
        return answer.lstrip()
    return answer if answer[:1].isspace() else f" {answer}"


def _flat(row: object, columns: Mapping[str, str]) -> Mapping[str, Any]:
    # Rows from Python or from lines of JSON can be anything.
    if not isinstance(row, Mapping):
        raise RowError(f"a {type(row).__name__}, not a row of named columns")
    if None in row:  # where csv puts surplus cells
        raise RowError("it has more cells than there are columns; a text with a comma in it needs quotes")
    return flatten_counterfact(_rename(row, columns) if columns else row)


def _rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _require_columns(present: set[str], columns: Mapping[str, str], template: Template | None) -> None:
    if not present:
        return
    listed = f"the columns are {_listed(present)}"
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise ArgumentError("columns", f"{ours!r} is none of {', '.join(COLUMNS)}")
        if ours not in present:
            raise ArgumentError("columns", f"there is no column {theirs!r}; {listed}")
    for column in template.columns if template is not None else ():
        if column != "prompt" and column not in present:
            raise ArgumentError("template", f"there is no column {column!r}; {listed}")
    missing = sorted({"subject", "target_true", "target_false"} - present)
    if (template is None or "prompt" in template.columns) and not {"prompt", "relation"} & present:
        missing.append("prompt")
    if missing:
        fix = f"name yours with columns={{{missing[0]!r}: NAME}}"
        raise ArgumentError("rows", f"no column {', '.join(missing)}; {listed}; {fix}")


def _listed(names: set[str]) -> str:
    # The column names of a file that is not what its suffix says can be anything.
    listed = ", ".join(sorted(str(name) if str(name).isprintable() else repr(name) for name in names))
    return listed if len(listed) <= MAX_LISTED_CHARACTERS else f"{listed[:MAX_LISTED_CHARACTERS]}..."
