"""Malformed rows and damaged files: none causes a traceback, and every row is accounted for."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

# Imported first within a test, Lightning would go on logging to that test's output, which is closed by then.
import lightning.pytorch  # noqa: F401
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lit_attr.cli import main
from lit_attr.errors import ArgumentError, UserError
from lit_attr.facts.rows import FactTable, read_facts
from lit_attr.facts.sources import open_rows
from lit_attr.facts.tokenization import build_contrasts
from lit_attr.records.folder import RunFolder

NAN = float("nan")
CAPITALS = (("Spain", "Madrid"), ("France", "Paris"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Cuba", "Havana"))


def fact(number: int, **changes: Any) -> dict[str, Any]:
    country, capital = CAPITALS[number % len(CAPITALS)]
    row = {
        "id": f"row {number}",
        "relation": "The capital of {} is",
        "prompt": f"The capital of {country} is",
        "subject": country,
        "target_true": f" {capital}",
        "target_false": " Rome",
        "relation_id": "P36",
    }
    return {**row, **changes}


def without(*columns: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in fact(0, **changes).items() if name not in columns}


def rewrite(**changes: Any) -> dict[str, Any]:
    """As the raw CounterFact file nests it."""
    inner = {
        "prompt": "The capital of {} is",
        "subject": "Spain",
        "target_true": {"str": "Madrid"},
        "target_new": {"str": "Rome"},
        "relation_id": "P36",
    }
    return {"case_id": "nested", "requested_rewrite": {**inner, **changes}}


# Rows, each with a part of its reason. With `strict` a run stops at the first.
BAD_ROWS: list[tuple[Any, str]] = [
    (without("subject"), "'subject' is missing"),
    (fact(0, target_true=None), "'target_true' is missing"),
    (without("prompt", "relation"), "'prompt' is missing, and so is 'relation' to build it from"),
    (fact(0, target_false=""), "'target_false' is empty"),
    (fact(0, prompt=" \n\t"), "'prompt' is empty"),
    (fact(0, prompt=None, relation="The capital is"), "'relation' has no {} for the subject"),
    (fact(0, prompt=None, relation="{} and {} are"), "'relation' has 2 {} for the subject, not one"),
    (fact(0, subject="Atlantis"), "the subject 'Atlantis' is not in the prompt"),
    (fact(0, target_false="Madrid "), "the true and the false answer are both ' Madrid'"),
    (fact(0, prompt="The capital of Spain is" + " so" * 70), "tokens, and the model has 64 positions"),
    (fact(0, prompt="The capital \ud800 of Spain is"), "'prompt' is not Unicode text (surrogates not allowed)"),
    (fact(0, id="\udfff"), "'id' is not Unicode text (surrogates not allowed)"),
    (fact(0, target_true=" Mad\x00rid"), "'target_true' has the control character U+0000"),
    (fact(0, subject="Spa\x1b[31min"), "'subject' has the control character U+001B"),
    (fact(0, prompt="Spain is " + "so " * 333_334), "'prompt' has 1,000,011 characters, more than 100,000"),
    (fact(0, relation="{}" + " so" * 33_332, prompt=None, subject="Spain"), "has 100,001 characters, more than"),
    (fact(0, target_false=NAN), "'target_false' is float, not text"),
    (fact(0, subject=NAN), "'subject' is float, not text"),
    (fact(0, id="row 0"), "an earlier row has the id 'row 0'"),
    (fact(0, target_true=3), "'target_true' is int, not text"),
    (fact(0, prompt=True), "'prompt' is bool, not text"),
    (fact(0, subject=["Spain"]), "'subject' is list, not text"),
    (fact(0, target_false={"str": " Rome"}), "'target_false' is dict, not text"),
    (fact(0, relation_id=["P36"]), "'relation_id' is list, not text"),
    (fact(0, relation_id=1.5), "'relation_id' is float, not text"),
    (fact(0, id=[1]), "'id' is list, not a whole number or text"),
    (fact(0, id=1.5), "'id' is float, not a whole number or text"),
    (fact(0, id="x" * 2000), "'id' has 2,000 characters, more than 1,000"),
    (rewrite(target_true={"text": "Madrid"}), "'target_true' is missing"),
    (rewrite(subject={"str": "Spain"}), "'subject' is dict, not text"),
    ({"case_id": "flat", "requested_rewrite": "The capital of {} is"}, "'subject' is missing"),
    ({}, "'subject' is missing"),
    (["The capital of Spain is"], "a list, not a row of named columns"),
    (None, "a NoneType, not a row of named columns"),
    (7, "a int, not a row of named columns"),
]


def mixed(bad: list[tuple[Any, str]]) -> tuple[list[Any], dict[int, str]]:
    """Puts a valid row before each invalid one and after the last; also maps row numbers to reasons."""
    rows: list[Any] = []
    reasons = {}
    for row, reason in bad:
        rows.append(fact(len(rows)))
        reasons[len(rows)] = reason
        # Only the row that repeats an id may keep its own.
        own = isinstance(row, dict) and row.get("id") == "row 0" and "earlier row" not in reason
        rows.append({**row, "id": f"row {len(rows)}"} if own else row)
    return [*rows, fact(len(rows))], reasons


def write_jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_parquet(path: Path, rows: list[Any]) -> None:
    schema = pa.schema([(name, pa.string()) for name in fact(0)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def fits_parquet(row: Any) -> bool:
    values = row.values() if isinstance(row, dict) and row.keys() & fact(0).keys() else [0]
    return all(value is None or (isinstance(value, str) and value.isascii()) for value in values)


def predict(source: Path, output: Path, *words: str) -> None:
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    main(["predict", "--data.source", str(source), "--writer.output_dir", str(output), *quiet, *words])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_run_finishes_despite_every_kind_of_malformed_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], suffix: str
):
    monkeypatch.setattr(sys, "argv", ["lit-attr"])
    bad = [pair for pair in BAD_ROWS if suffix == ".jsonl" or fits_parquet(pair[0])]
    assert len(bad) >= 10
    rows, reasons = mixed(bad)
    source, output = tmp_path / f"facts{suffix}", tmp_path / "out"
    {".jsonl": write_jsonl, ".parquet": write_parquet}[suffix](source, rows)

    predict(source, output)
    refused = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in refused] == list(reasons)
    for line in refused:
        number, row = line["row"], rows[line["row"]]
        assert reasons[number] in line["reason"]
        own_id = row.get("id", row.get("case_id")) if isinstance(row, dict) else None
        named = own_id[:100] if isinstance(own_id, str) else number
        assert line["id"] == ("\\udfff" if named == "\udfff" else named)
    written = [
        example["id"]
        for path in output.glob("batches/*.json")
        for example in json.loads(path.read_text())["examples"]
    ]
    assert sorted(written) == sorted(row["id"] for number, row in enumerate(rows) if number not in reasons)
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["contrasts"], summary["rejected"]) == (len(written), len(refused))
    assert len(written) + len(refused) == len(rows)

    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        predict(source, tmp_path / "strict", "--data.strict", "true")
    assert stopped.value.code == 1
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "error: " in line]
    first = refused[0]
    assert f"data.source: row 1 (id {first['id']!r}): {first['reason']}; fix the row" in line
    assert not (tmp_path / "strict").exists()


many = settings(
    derandomize=True, deadline=None, database=None, max_examples=400, suppress_health_check=list(HealthCheck)
)
COLUMNS = (*fact(0), "case_id", "requested_rewrite")
NESTED = ("prompt", "subject", "target_true", "target_new", "relation_id")
texts = st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=3)
long_texts = st.sampled_from(["x" * 2_000, "Spain " * 20_000, "{}" * 60_000, "\ud800" * 200_000, "x" * 1_000_000])
atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=5)
    | st.sampled_from([10**30, -(10**400), 2**63, -(2**63), 1e300, NAN, 17.0, "17", b"\xff"])
    # Too many digits for the `repr` that `sampled_from` makes.
    | st.none().map(lambda _: 10**5000)
    | st.sampled_from([Decimal("1.5"), date(2020, 1, 1), object(), int, 1j, range(3), ...])
    | st.sampled_from(
        [pd.NA, pd.NaT, np.int64(3), np.float32("nan"), np.arange(3), np.array("x"), np.str_("Spain")]
    )
)
boxes = st.lists(atoms, max_size=2) | st.tuples(atoms) | st.dictionaries(texts, atoms, max_size=2)
junk = texts | long_texts | atoms | boxes | st.lists(boxes, max_size=2)
names = (
    st.sampled_from(COLUMNS) | texts | st.integers() | st.none() | st.tuples(st.integers()) | st.binary(max_size=2)
)
templates = st.sampled_from(
    ["", "{}", "is {", "{} {}", "The capital of is", "{}{}{}", "{0}", "{subject} is", " {} \n"]
)
few_ids = st.sampled_from([0, 1, "1", 1.0, "row 1", "row 2"])


@st.composite
def damaged_rows(draw: st.DrawFn) -> Any:
    if draw(st.integers(0, 9)) == 0:
        return draw(junk | st.dictionaries(names, junk, max_size=4))
    row: dict[Any, Any] = fact(draw(st.integers(0, 4)))
    for _ in range(draw(st.integers(1, 3))):
        column = draw(st.sampled_from(COLUMNS))
        damage = draw(st.sampled_from(["drop", "rename", "junk", "junk", "template", "id", "nest", "swap"]))
        if damage == "drop":
            row.pop(column, None)
        elif damage == "rename":
            row[draw(names)] = row.pop(column, None)
        elif damage == "junk":
            row[column] = draw(junk)
        elif damage == "template":
            row["relation"] = draw(templates)
            row["prompt"] = draw(st.none() | st.just(row.get("prompt")))
        elif damage == "id":
            row[draw(st.sampled_from(["id", "case_id"]))] = draw(few_ids | junk)
        elif damage == "nest":
            row = rewrite(**{draw(st.sampled_from(NESTED)): draw(junk)})
        else:
            row[column] = row.get(draw(st.sampled_from(COLUMNS)))
    return row


def assert_one_line_each(table: FactTable, reasons: list[str]) -> None:
    assert all(len(reason) < 1000 and len(reason.splitlines()) == 1 and reason.strip() for reason in reasons)
    assert len({fact.id for fact in table.facts}) == len(table.facts)


def test_two_thousand_malformed_rows_are_facts_or_have_a_reason(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
):
    tried: Counter[str] = Counter()

    @given(rows=st.lists(damaged_rows(), min_size=10, max_size=15), limit=st.none() | st.integers(1, 20))
    @many
    def check(rows: list[Any], limit: int | None) -> None:
        # With one valid row: a column that no row has is refused for the whole source, which is tested elsewhere.
        rows = [fact(0, id="whole"), *rows]
        table = read_facts(iter(rows), limit=limit)
        assert [row.row for row in sorted([*table.facts, *table.rejected], key=lambda row: row.row)] == list(
            range(min(len(rows), limit or len(rows)))
        )
        assert table.facts[0].id == "whole"
        contrasts, rejected = build_contrasts(table.facts, tokenizer)
        assert len(contrasts) + len(rejected) == len(table.facts)
        refused = sorted(table.rejected + rejected)
        assert_one_line_each(table, [row.reason for row in refused])
        folder = RunFolder(tmp_path)
        folder.open({"model": {}, "data": {}}, refused)
        lines = [json.loads(line) for line in folder.rejected.read_bytes().splitlines()]
        assert [(line["row"], line["reason"]) for line in lines] == [(row.row, row.reason) for row in refused]
        assert all(isinstance(line["id"], int | str) and len(str(line["id"])) <= 1000 for line in lines)
        tried.update(facts=len(contrasts), refused=len(refused))

    check()
    assert tried["refused"] >= 2000
    # Damage that leaves a fact valid does not reject it.
    assert tried["facts"] >= 500


@given(rows=st.lists(damaged_rows(), max_size=4), relation_ids=st.none() | st.just({"P36"}))
@many
def test_a_table_of_malformed_rows_is_read_or_refused_in_one_line(rows: list[Any], relation_ids: set[str] | None):
    try:
        table = read_facts(rows, relation_ids=relation_ids, columns={"subject": "subject"})
    except ArgumentError as error:
        line = str(error)
        assert line.startswith(("rows: ", "columns: ")) and line.isprintable() and len(line) < 1000
    else:
        assert len(table.facts) + len(table.rejected) <= len(rows)
        assert_one_line_each(table, [row.reason for row in table.rejected])


GOOD = [fact(number) for number in range(5)]


def in_bytes(suffix: str, rows: list[dict[str, Any]] = GOOD) -> bytes:
    if suffix == ".parquet":
        packed = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), packed)
        return packed.getvalue()
    stream = io.StringIO(newline="")
    if suffix == ".json":
        json.dump(rows, stream, indent=1)
    elif suffix == ".jsonl":
        stream.write("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return stream.getvalue().encode()


WHOLE = {suffix: in_bytes(suffix) for suffix in (".json", ".jsonl", ".csv", ".parquet")}
SUFFIXES = [f"{suffix}{packed}" for suffix in WHOLE for packed in ("", ".gz")]
pieces = st.binary(min_size=1, max_size=6) | st.sampled_from(
    [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b",", b"{", b"[" * 3000, b"NaN", b"\\ud800", b"PAR1"]
)


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes) -> bytes:
    damaged = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(damaged)))
        damage = draw(st.sampled_from(["cut", "flip", "insert", "delete", "append"]))
        if damage == "cut":
            del damaged[place:]
        elif damage == "flip" and place < len(damaged):
            damaged[place] ^= draw(st.integers(1, 255))
        elif damage == "insert":
            damaged[place:place] = draw(pieces)
        elif damage == "delete":
            del damaged[place : place + draw(st.integers(1, 40))]
        else:
            damaged += draw(pieces)
    return bytes(damaged)


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A suffix and the content of a file; one in four has the content of another suffix."""
    suffix = draw(st.sampled_from(SUFFIXES))
    inside = draw(st.sampled_from(SUFFIXES)) if draw(st.integers(0, 3)) == 0 else suffix
    content = WHOLE[inside.removesuffix(".gz")]
    packed = inside.endswith(".gz")
    inside_out = draw(st.booleans())
    if not packed or inside_out:
        content = draw(damaged_bytes(content))
    if packed:
        content = gzip.compress(content, mtime=0)
        if not inside_out:
            content = draw(damaged_bytes(content))
    return suffix, content


def outcome(path: Path) -> FactTable | str:
    """Reads a file: its table, whose counts add up, or the line with which it is refused."""
    seen = 0

    def counted() -> Any:
        nonlocal seen
        for row in open_rows(str(path)):
            seen += 1
            yield row

    try:
        table = read_facts(counted())
    except UserError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 2000
        # Anything but missing columns names the file.
        assert str(path) in line or "rows: no column " in line
        return line
    assert len(table.facts) + len(table.rejected) == seen > 0
    assert_one_line_each(table, [row.reason for row in table.rejected])
    return table


def test_hundreds_of_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path):
    tried: Counter[str] = Counter()

    @given(file=damaged_files())
    @settings(many, max_examples=800)
    def check(file: tuple[str, bytes]) -> None:
        suffix, content = file
        path = tmp_path / f"facts{suffix}"
        path.write_bytes(content)
        result = outcome(path)
        tried["refused" if isinstance(result, str) else "read"] += 1
        if isinstance(result, str) and "not UTF-8" in result and suffix in (".json", ".jsonl", ".csv"):
            with pytest.raises(UnicodeDecodeError) as found:
                content.decode()
            line = len(content[: found.value.start + 1].splitlines())
            assert f"{path}, line {line}: not UTF-8" in result

    check()
    assert tried["refused"] >= 200
    assert tried["read"] >= 50
