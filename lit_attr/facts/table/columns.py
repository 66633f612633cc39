"""Facts and contrasts as columns of Arrow tables, and back.

A record batch has few enough rows that texts as long as they may be fit into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_attr.facts.contrasts import Contrast, Donor, digest_contrast
from lit_attr.facts.roles import roles_of
from lit_attr.facts.rows import Fact
from lit_attr.facts.table.keys import KEY_BYTES, hash_key

# Arrow counts the bytes of a column's texts in 31 bits.
BATCH_ROWS = 1024

_FACT = [
    ("row", pa.int64()),
    ("id_number", pa.int64()),
    ("id_text", pa.string()),
    ("prompt", pa.string()),
    ("subject", pa.string()),
    ("subject_start", pa.int32()),
    ("target_true", pa.string()),
    ("target_false", pa.string()),
    ("relation_id", pa.string()),
    # Not checked, where the prompt is made without it: lone surrogates, which no text in Arrow has, stay.
    ("relation", pa.large_binary()),
]
_CONTRAST = [
    ("step", pa.int32()),
    ("token_ids", pa.list_(pa.int32())),
    ("tokens", pa.list_(pa.string())),
    ("subject_begin", pa.int32()),
    ("subject_end", pa.int32()),
    ("true_token_id", pa.int32()),
    ("false_token_id", pa.int32()),
    ("true_token", pa.string()),
    ("false_token", pa.string()),
]
_DONOR = [
    ("donor_number", pa.int64()),
    ("donor_text", pa.string()),
    ("donor_token_ids", pa.list_(pa.int32())),
]
# What is worked out of a contrast once: the hashes of its key and of what it asks.
_WORKED_OUT = [("key", pa.binary(KEY_BYTES)), ("digest", pa.uint64())]

FACT_SCHEMA = pa.schema([*_FACT, ("true_space", pa.bool_()), ("false_space", pa.bool_())])
CONTRAST_SCHEMA = pa.schema([*_FACT, *_CONTRAST, *_DONOR, *_WORKED_OUT])
# What a contrast is made of.
CONTRAST_COLUMNS = [name for name, _ in (*_FACT, *_CONTRAST, *_DONOR)]


def encode_facts(facts: Sequence[Fact]) -> pa.RecordBatch:
    """A record batch of facts."""
    columns = [*_fact_columns(facts), *([fact.spaces_added[at] for fact in facts] for at in range(2))]
    return _batch(columns, FACT_SCHEMA)


def decode_facts(batch: pa.RecordBatch) -> list[Fact]:
    """The facts of a record batch."""
    columns = [column.to_pylist() for column in batch.columns]
    return [_fact(*values) for values in zip(*columns, strict=True)]


def encode_contrasts(contrasts: Sequence[Contrast]) -> pa.RecordBatch:
    """A record batch of contrasts."""
    donors = [contrast.donor for contrast in contrasts]
    return _batch(
        [
            *_fact_columns([contrast.fact for contrast in contrasts]),
            [contrast.step for contrast in contrasts],
            [contrast.token_ids for contrast in contrasts],
            [contrast.tokens for contrast in contrasts],
            [contrast.subject_span[0] for contrast in contrasts],
            [contrast.subject_span[1] for contrast in contrasts],
            [contrast.true_token_id for contrast in contrasts],
            [contrast.false_token_id for contrast in contrasts],
            [contrast.true_token for contrast in contrasts],
            [contrast.false_token for contrast in contrasts],
            *donor_columns(donors),
            [hash_key(contrast.key) for contrast in contrasts],
            [digest_contrast(contrast) for contrast in contrasts],
        ],
        CONTRAST_SCHEMA,
    )


def donor_columns(donors: Sequence[Donor | None]) -> tuple[list[Any], list[Any], list[Any]]:
    """The columns of donors: their ids as numbers and as texts, and their tokens."""
    ids = [None if donor is None else donor.id for donor in donors]
    tokens = [None if donor is None else donor.token_ids for donor in donors]
    return *id_columns(ids), tokens


def concatenate(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One record batch of several, which have at least one row."""
    (whole,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return whole


def contrast_of(*values: Any) -> Contrast:
    """A contrast of the values of a row in `CONTRAST_COLUMNS`."""
    fact, rest = _fact(*values[: len(_FACT)]), values[len(_FACT) :]
    step, token_ids, tokens, begin, end, true_id, false_id, true_token, false_token, *donor = rest
    donor_number, donor_text, donor_token_ids = donor
    return Contrast(
        fact,
        step,
        tuple(token_ids),
        tuple(tokens),
        roles_of(len(token_ids), (begin, end)),
        (begin, end),
        true_id,
        false_id,
        true_token,
        false_token,
        None if donor_token_ids is None else Donor(either(donor_number, donor_text), tuple(donor_token_ids)),
    )


def _fact(
    row: int,
    id_number: int | None,
    id_text: str | None,
    prompt: str,
    subject: str,
    subject_start: int,
    target_true: str,
    target_false: str,
    relation_id: str,
    relation: bytes,
    # In the fact of a contrast they are settled.
    true_space: bool = False,
    false_space: bool = False,
) -> Fact:
    return Fact(
        row,
        either(id_number, id_text),
        prompt,
        subject,
        subject_start,
        target_true,
        target_false,
        relation_id,
        (true_space, false_space),
        relation.decode("utf-8", "surrogatepass"),
    )


def _fact_columns(facts: Sequence[Fact]) -> list[list[Any]]:
    return [
        [fact.row for fact in facts],
        *id_columns([fact.id for fact in facts]),
        [fact.prompt for fact in facts],
        [fact.subject for fact in facts],
        [fact.subject_start for fact in facts],
        [fact.target_true for fact in facts],
        [fact.target_false for fact in facts],
        [fact.relation_id for fact in facts],
        [fact.relation.encode("utf-8", "surrogatepass") for fact in facts],
    ]


def id_columns(ids: Sequence[int | str | None]) -> tuple[list[Any], list[Any]]:
    """The columns of ids: the numbers and the texts among them, None for the others."""
    return [each if isinstance(each, int) else None for each in ids], [
        each if isinstance(each, str) else None for each in ids
    ]


def either(number: int | None, text: str | None) -> int | str:
    """The id in the columns of ids."""
    if number is not None:
        return number
    assert text is not None
    return text


def joined(arrays: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    """The arrays of record batches as one, also of none."""
    return np.concatenate(arrays).astype(kind, copy=False) if arrays else np.zeros(0, dtype=kind)


def _batch(columns: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
