"""Records as tables: Parquet with nested columns, and CSV in long form."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lit_attr.records.exports.export import read_contrasts
from lit_attr.records.reading import with_lists

ROW_GROUP = 1_024  # contrasts, as many as are in memory
# Columns of the long form: the contrast, the place in it, and, after the scores, what the model answered.
CONTRAST = ("id", "relation_id", "step", "rule")
PLACE = ("component", "layer", "position", "token", "role")
NEURON = ("layer", "neuron", "position", "token", "role")
# What a formula begins with in spreadsheets, and what makes them look at the character after it.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
OUTCOME = ("logit_diff", "rank_true")


def write_parquet(folder: Path, path: Path) -> None:
    """Writes a row a contrast; the columns are those of `load_attributions(folder, "dataset")`."""
    # A column has one type: ids are numbers only if all of them are.
    convert = int if all(isinstance(record["id"], int) for record in read_contrasts(folder)) else str
    rows = ({**with_lists(record), "id": convert(record["id"])} for record in read_contrasts(folder))
    table = pa.Table.from_pylist(list(islice(rows, ROW_GROUP)))
    # Python's own file, whose errors say in short what is wrong.
    with path.open("wb") as stream, pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        while len(table):
            writer.write_table(table)
            table = pa.Table.from_pylist(list(islice(rows, ROW_GROUP)), table.schema)


def write_csv(folder: Path, path: Path, *, escape_formulas: bool = False) -> None:
    """Writes a row a contrast, component, layer and token, the kinds of scores side by side.

    Args:
        folder: The run's folder.
        path: The file to create.
        escape_formulas: Put a `'` before each text that a spreadsheet would run as a formula.
    """
    first = next(read_contrasts(folder))
    kinds = list(dict.fromkeys(kind for scores in first["scores"].values() for kind in scores))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        escaped = _escaped if escape_formulas else list
        writer.writerow([*CONTRAST, *PLACE, *kinds, *OUTCOME])
        for record in read_contrasts(folder):
            contrast, outcome = ([record[name] for name in names] for names in (CONTRAST, OUTCOME))
            tokens = list(zip(record["tokens"], record["roles"], strict=True))
            for component, scores in record["scores"].items():
                for row, layer in enumerate(record["layers"]):
                    # A component without a kind of scores leaves its column empty.
                    columns = [
                        scores[kind][row].tolist() if kind in scores else [""] * len(tokens) for kind in kinds
                    ]
                    for position, (token, *numbers) in enumerate(zip(tokens, *columns, strict=True)):
                        texts = escaped([*contrast, component, layer, position, *token])
                        writer.writerow([*texts, *numbers, *outcome])


def write_neurons(folder: Path, path: Path, *, escape_formulas: bool = False) -> None:
    """Writes a row a contrast and neuron, in the order of the records.

    Args:
        folder: The folder of a run with neurons.
        path: The file to create.
        escape_formulas: Put a `'` before each text that a spreadsheet would run as a formula.
    """
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        escaped = _escaped if escape_formulas else list
        writer.writerow([*CONTRAST, *NEURON, "score", *OUTCOME])
        for record in read_contrasts(folder):
            contrast, outcome = ([record[name] for name in names] for names in (CONTRAST, OUTCOME))
            for each in record["neurons"]:
                place = each["token"]
                texts = [each["layer"], each["neuron"], place, record["tokens"][place], record["roles"][place]]
                writer.writerow([*escaped([*contrast, *texts]), each["score"], *outcome])


def _escaped(cells: list[object]) -> list[object]:
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells]
