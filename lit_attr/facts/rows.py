"""Facts: validated rows in the columns of `NeelNanda/counterfact-tracing`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from lit_attr.errors import ArgumentError, RowError, shown
from lit_attr.facts.cells import (
    ID_COLUMNS,
    id_in,
    is_empty,
    relation_id_of,
    required_text,
    row_id,
    shown_id,
)
from lit_attr.facts.seams import AUTO, check_separator, continuation
from lit_attr.facts.templates import Template, normal_form, prompt_of

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
        target_true: The true answer as it continues the prompt: with what joins the two, and no space after it.
        target_false: The false answer, likewise.
        relation_id: Wikidata property such as `P36`, or empty.
        spaces_added: Whether a space was put before the true and the false answer that the row does not have.
            Beside a special token of the tokenizer it is taken out again, and the fact of a contrast has none.
        relation: The row's `relation`, with `{}` for the subject, or empty.
    """

    row: int
    id: int | str
    prompt: str
    subject: str
    subject_start: int
    target_true: str
    target_false: str
    relation_id: str
    spaces_added: tuple[bool, bool] = (False, False)
    relation: str = ""


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
        pool: Every fact of the source by id, whatever its relation and beyond any limit: the possible donors.
            Empty where donors are not asked for. Of several facts with one id it has the first.
        donor_ids: The id of the donor that the row of a fact names, by the fact's id.
    """

    facts: list[Fact]
    rejected: list[Rejected]
    spaces_added: int
    pool: dict[int | str, Fact]
    donor_ids: dict[int | str, int | str]


def parse_fact(
    row: Mapping[str, Any],
    row_number: int | None,
    template: Template | None = None,
    answer_separator: str = AUTO,
) -> Fact:
    """Validates one row: flat as in `counterfact-tracing`, nested as in CounterFact, or a request of ROME.

    Args:
        row: Column name to value. `prompt` may be missing where there is a `relation` with `{}` for the subject.
        row_number: The row's number in its source, from 0, which is its id where it has none; None where the
            number is not known.
        template: Makes the prompt from the row's columns, in place of the row's own prompt.
        answer_separator: What to put before an answer, see :func:`continuation`.

    Raises:
        RowError: The row does not map column names to values, a field is missing, empty or not text, the answers
            are equal, or the subject is not in the prompt.
    """
    flat = _flat(row, {})
    subject = required_text(flat, "subject")
    prompt, start, subject = prompt_of(flat, subject, template)
    if start < 0:
        raise RowError(f"the subject {shown(subject)} is not in the prompt {shown(prompt)}")
    true, space_before_true = continuation(prompt, required_text(flat, "target_true"), answer_separator)
    false, space_before_false = continuation(prompt, required_text(flat, "target_false"), answer_separator)
    if normal_form(true.strip()) == normal_form(false.strip()):
        raise RowError(f"the true and the false answer are both {shown(true)}")
    content = prompt, subject, start, true, false, relation_id_of(flat)
    spaces_added = space_before_true, space_before_false
    # A template of one's own may leave out a relation that is not text.
    relation = flat["relation"] if isinstance(flat.get("relation"), str) else ""
    if row_number is None:
        own = row_id(flat, hashlib.sha256(repr(content).encode()).hexdigest()[:16])
        return Fact(-1, own, *content, spaces_added, relation)
    return Fact(row_number, row_id(flat, row_number), *content, spaces_added, relation)


def read_facts(
    rows: Iterable[Mapping[str, Any]],
    *,
    relation_ids: Collection[str] | None = None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    template: Template | None = None,
    numbered: bool = True,
    answer_separator: str = AUTO,
    with_donors: bool = False,
    donor_column: str | None = None,
) -> FactTable:
    """Validates rows; each becomes a fact, or is rejected with a reason.

    Args:
        rows: Rows as `parse_fact` takes them. Anything else among them is rejected like an invalid row.
        relation_ids: Keep only rows of these relations; None keeps all.
        limit: Take only the first so many of the kept rows; None takes all.
        columns: Our column name to the name in the rows, for columns whose names differ.
        template: Makes the prompts from the rows' columns, by our names or theirs.
        numbered: Whether the id of a row without one is its number; otherwise it is a hash of the fact.
        answer_separator: What to put before an answer, see :func:`continuation`.
        with_donors: Whether to read all rows of the source, whatever `relation_ids` and `limit` keep, and to have
            those that are facts in the table's `pool`.
        donor_column: The rows' column, by our name or theirs, with the id of the row that is a row's donor. With
            `with_donors`, a row in which it is empty is rejected.

    Raises:
        ArgumentError: No row has a column that every fact or the template needs, or the column of donors, no row
            is left, or the separator has characters that no text has.
    """
    table = FactTable([], [], 0, {}, {})
    reading = Reading(
        relation_ids, limit, columns or {}, template, numbered, answer_separator, with_donors, donor_column
    )
    for read in reading.each(rows):
        if read.is_in_pool and read.fact is not None:
            table.pool[read.fact.id] = read.fact
        if read.rejected is not None:
            table.rejected.append(read.rejected)
        elif read.is_kept and read.fact is not None:
            table.facts.append(read.fact)
            if read.donor_id is not None:
                table.donor_ids[read.fact.id] = read.donor_id
    return table._replace(spaces_added=sum(any(fact.spaces_added) for fact in table.facts))


class Read(NamedTuple):
    """What has become of a row.

    Attributes:
        fact: The fact; None where it is not one.
        rejected: Why the row has no record; None where it has one, or where it is not kept.
        is_kept: Whether the row is one that was asked for; the others may be donors.
        is_in_pool: Whether the fact is the first with its id of all that may be donors.
        donor_id: The id of the donor that the row names.
    """

    fact: Fact | None
    rejected: Rejected | None = None
    is_kept: bool = True
    is_in_pool: bool = False
    donor_id: int | str | None = None


class Reading(NamedTuple):
    """How rows are read: the arguments of :func:`read_facts`."""

    relation_ids: Collection[str] | None = None
    limit: int | None = None
    columns: Mapping[str, str] = {}
    template: Template | None = None
    numbered: bool = True
    answer_separator: str = AUTO
    with_donors: bool = False
    donor_column: str | None = None

    def each(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Read]:
        """Validates rows one by one. A row that is neither kept nor possibly a donor yields nothing.

        Raises:
            ArgumentError: See :func:`read_facts`; at once, or after the last row.
        """
        check_separator(self.answer_separator)
        seen_columns: set[str] = set()
        seen_ids: set[int | str] = set()
        pool_ids: set[int | str] = set()
        kept = 0
        for row_number, row in enumerate(rows):
            is_kept = self.limit is None or kept < self.limit
            if not is_kept and not self.with_donors:
                break
            flat: Mapping[str, Any] = {}
            fact = None
            is_in_pool = False
            try:
                flat = _flat(row, self.columns)
                seen_columns.update(flat)
                if self.relation_ids is not None and relation_id_of(flat) not in self.relation_ids:
                    is_kept = False
                if not is_kept and not self.with_donors:
                    continue
                fact = parse_fact(
                    flat, row_number if self.numbered else None, self.template, self.answer_separator
                )
                if self.with_donors:
                    is_in_pool = fact.id not in pool_ids
                    pool_ids.add(fact.id)
                if not is_kept:
                    if is_in_pool:
                        yield Read(fact, is_kept=False, is_in_pool=True)
                    continue
                if fact.id in seen_ids:
                    name = shown(fact.id) if isinstance(fact.id, str) else fact.id
                    raise RowError(f"an earlier row has the id {name}")
                donor_id = self._donor_id(row, flat, seen_columns)
            except RowError as error:
                if is_kept:
                    kept += 1
                    rejected = Rejected(row_number, shown_id(flat, row_number), str(error))
                    yield Read(fact, rejected, is_in_pool=is_in_pool)
                continue
            kept += 1
            seen_ids.add(fact.id)
            yield Read(fact, is_in_pool=is_in_pool, donor_id=donor_id)
        named = self.donor_column if self.with_donors else None
        _require_columns(seen_columns, self.columns, self.template, named)
        if not kept:
            wanted = f" with relation_id in {sorted(self.relation_ids)}" if self.relation_ids is not None else ""
            raise ArgumentError("rows", f"there are no rows{wanted}; give a source that has some")

    def _donor_id(
        self, row: Mapping[str, Any], flat: Mapping[str, Any], seen_columns: set[str]
    ) -> int | str | None:
        if not self.with_donors or self.donor_column is None:
            return None
        # What is nested is made flat without the columns beside it.
        cells = {**row, **flat}
        seen_columns.update(cells)
        donor_id = id_in(cells, self.donor_column)
        if donor_id is None:
            raise RowError(f"{self.donor_column!r} is empty, so that it names no donor")
        return donor_id


def flatten_counterfact(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moves the nested `requested_rewrite` of the raw CounterFact file, or a request of ROME, into flat columns.

    In both, `prompt` is the relation template, `target_true` the true and `target_new` the false answer. Other
    rows pass as they are.
    """
    rewrite = row.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        return _flatten_request(row)
    flat: dict[str, Any] = {"relation": rewrite.get("prompt")}
    flat["target_true"] = _answer_text(rewrite.get("target_true"))
    flat["target_false"] = _answer_text(rewrite.get("target_new"))
    flat.update((key, rewrite.get(key)) for key in ("subject", "relation_id"))
    flat.update((key, row[key]) for key in ID_COLUMNS if key in row)
    return flat


def _flatten_request(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request as ROME and EasyEdit have it, with its `prompt` as the relation; other rows as they are.

    A prompt with the subject in it is complete: its braces are text.
    """
    prompt, subject = row.get("prompt"), row.get("subject")
    if not isinstance(prompt, str) or not isinstance(subject, str):
        return row
    if prompt.count("{}") != 1 or subject.strip() in prompt:
        return row
    flat = {name: value for name, value in row.items() if name != "prompt"}
    flat["relation"] = prompt
    if is_empty(flat.get("target_false")) and "target_new" in flat:
        flat["target_false"] = flat["target_new"]
    for column in ("target_true", "target_false"):
        if column in flat:
            flat[column] = _answer_text(flat[column])
    return flat


def _answer_text(answer: Any) -> Any:
    return answer.get("str") if isinstance(answer, Mapping) else answer


def _flat(row: object, columns: Mapping[str, str]) -> Mapping[str, Any]:
    # Rows from Python or from lines of JSON can be anything.
    if not isinstance(row, Mapping):
        raise RowError(f"a {type(row).__name__}, not a row of named columns")
    if None in row:  # where csv puts surplus cells
        raise RowError("it has more cells than there are columns; a text with a comma in it needs quotes")
    return flatten_counterfact(_rename(row, columns) if columns else row)


def _rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _require_columns(
    present: set[str], columns: Mapping[str, str], template: Template | None, donor_column: str | None
) -> None:
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
    if donor_column is not None and donor_column not in present:
        raise ArgumentError("donor_column", f"there is no column {shown(donor_column)}; {listed}")
    missing = sorted({"subject", "target_true", "target_false"} - present)
    if (template is None or "prompt" in template.columns) and not {"prompt", "relation"} & present:
        missing.append("prompt")
    if missing:
        fix = f"name yours in the setting columns, as {{{missing[0]}: NAME}}"
        raise ArgumentError("rows", f"no column {', '.join(missing)}; {listed}; {fix}")


def _listed(names: set[str]) -> str:
    # The column names of a file that is not what its suffix says can be anything. Spaces around one are easily
    # overlooked.
    listed = ", ".join(sorted(str(name) if _is_plain(str(name)) else repr(name) for name in names))
    return listed if len(listed) <= MAX_LISTED_CHARACTERS else f"{listed[:MAX_LISTED_CHARACTERS]}..."


def _is_plain(name: str) -> bool:
    return name.isprintable() and name == name.strip()
