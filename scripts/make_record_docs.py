"""Makes what is derived from the declaration of the record format: `python scripts/make_record_docs.py`.

Writes the JSON Schemas in `lit_attr/assets` and the tables of fields in `docs/records.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lit_attr.records.schema import BatchRecord, ExactRecord

REPOSITORY = Path(__file__).resolve().parents[1]
ASSETS = REPOSITORY / "lit_attr" / "assets"
RECORDS = {"attributions.schema.json": BatchRecord, "exact.schema.json": ExactRecord}
INTRODUCTION = """# Records

<!-- Made by scripts/make_record_docs.py from lit_attr/records/schema.py. -->

A run writes one JSON file a batch, `OUT/batches/*.json`, and one for each contrast whose exact effects it
computes, `OUT/exact/*.json`. `lit_attr.load_attributions(OUT)` reads the batch files back, and so does

    datasets.load_dataset("json", data_files="OUT/batches/*.json", field="examples")

Their JSON Schemas are `attributions.schema.json` and `exact.schema.json` in `lit_attr/assets`.
Every number is finite: a contrast with a number that is not is refused, with the reason in `OUT/rejected.jsonl`.
"""


def schema_of(record: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a kind of file."""
    schema = msgspec.json.schema(record, schema_hook=lambda _: {})
    # A record in memory lacks them until it is written.
    schema["$defs"][record.__name__]["required"] += ["run", "digest"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def files() -> dict[Path, str]:
    """What is written where."""
    schemas = {name: schema_of(record) for name, record in RECORDS.items()}
    made = {ASSETS / name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}
    tables = (line for schema in schemas.values() for line in _tables(schema))
    return {**made, REPOSITORY / "docs" / "records.md": INTRODUCTION + "\n".join(["", *tables])}


def main() -> None:
    """Writes the files."""
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(REPOSITORY))


def _tables(schema: dict[str, Any]) -> Iterator[str]:
    """A table of fields for each object in a schema."""
    for name, declared in schema["$defs"].items():
        yield f"## {name}"
        yield ""
        yield declared["description"]
        yield ""
        yield "| field | type | |"
        yield "|---|---|---|"
        for field, value in declared["properties"].items():
            optional = "" if field in declared["required"] else "Optional. "
            yield f"| `{field}` | {_kind(value)} | {optional}{value.get('description', '')} |"
        yield ""


def _kind(value: dict[str, Any]) -> str:
    """What a field holds, in words."""
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"])
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[1]
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if value["type"] == "array":
        return f"list of {_kind(value['items'])}"
    if value["type"] == "object":
        return f"object of {_kind(value['additionalProperties'])}"
    return str(value["type"])


if __name__ == "__main__":
    main()
