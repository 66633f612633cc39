"""A run's records for other programs: Parquet, CSV, or Inseq's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from lit_attr.errors import ArgumentError, UserError, check_choice
from lit_attr.records.files import briefly, check_path
from lit_attr.records.reading import load_attributions

Target = Literal["parquet", "csv", "inseq"]
Per = Literal["example", "layer"]
OUTPUTS: dict[Target, str] = {"parquet": "attributions.parquet", "csv": "attributions.csv", "inseq": "inseq"}
NEURONS = "neurons.csv"


def export(
    folder: str | Path,
    to: Target,
    output: str | Path | None = None,
    per: Per | None = None,
    *,
    escape_formulas: bool = False,
    neurons: bool = False,
) -> Path:
    """Writes a run's records in a form that other programs read. Nothing is overwritten.

    `parquet` is one file with a row a contrast and all of its fields; scores are nested: component, kind, layers,
    tokens. `csv` is one file with a row a contrast, component, layer and token (in pandas, read it with
    `keep_default_na=False`, since tokens can be `NA`). `inseq` is a folder of files for
    `inseq.FeatureAttributionOutput.load`: `ex_ID.json` has the signed scores of a contrast in all layers; with
    `per` set to `layer`, `layer_LAYER_ex_ID.json` has those in one layer, named as in the example of factual
    knowledge in Inseq's documentation.

    Args:
        folder: The output folder of a run.
        to: What to write.
        output: The file, or the folder for Inseq's files. Default: one in the run's folder.
        per: With `inseq`, what a file holds. Default: `example`.
        escape_formulas: With `csv`, put a `'` before each text that a spreadsheet would run as a formula.
        neurons: With `csv`, write a row a contrast and neuron instead, of a run with `top_neurons`; `parquet` has
            them in its column `neurons` in any case.

    Returns:
        Where the export is.

    Raises:
        UserError: The folder has no records or damaged ones, or the output exists or cannot be written.
    """
    check_choice("to", to, OUTPUTS)
    if per is not None:
        check_choice("per", per, get_args(Per))
    if per is not None and to != "inseq":
        raise ArgumentError("per", f"it is for inseq, not {to}; leave it out")
    if escape_formulas and to != "csv":
        raise ArgumentError("escape_formulas", f"it is for csv, not {to}; leave it out")
    if neurons and to != "csv":
        raise ArgumentError("neurons", f"it is for csv, not {to}; leave it out")
    folder = Path(folder)
    check_path("folder", folder)
    place = folder / (NEURONS if neurons else OUTPUTS[to]) if output is None else Path(output)
    # Nothing is created for a folder that is not a run's.
    first = next(read_contrasts(folder))
    if neurons and "neurons" not in first:
        raise ArgumentError("neurons", f"{folder} has none; leave it out, or run again with top_neurons")
    with whole(place) as part:
        # pyarrow takes a fifth of a second to import, and torch two; reading needs neither.
        if to == "inseq":
            from lit_attr.records.exports.inseq import write_inseq

            write_inseq(folder, part, by_layer=per == "layer")
        elif to == "parquet":
            from lit_attr.records.exports.tables import write_parquet

            write_parquet(folder, part)
        elif neurons:
            from lit_attr.records.exports.tables import write_neurons

            write_neurons(folder, part, escape_formulas=escape_formulas)
        else:
            from lit_attr.records.exports.tables import write_csv

            write_csv(folder, part, escape_formulas=escape_formulas)
    return place


def read_contrasts(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, one batch file in memory at a time.

    Raises:
        UserError: There is none, or one has other fields, components or kinds of scores than the first.
    """
    wanted: set[str] | None = None
    for record in load_attributions(folder):
        scores = record["scores"].items()
        fields = {*record, *(f"scores.{component}.{kind}" for component, kinds in scores for kind in kinds)}
        # A table has the same columns in every row: a missing field would be empty in it, a further one dropped.
        if wanted is not None and (odd := sorted(wanted ^ fields)):
            raise UserError(
                f"{folder}: id {briefly(record['id'])} lacks {', '.join(odd)}, or has it alone; move its batch "
                "file away and run again"
            )
        wanted = fields
        yield record
    if wanted is None:
        raise UserError(f"{folder}: there is no contrast in it; give the output folder of a run that has some")


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A place to write to, which becomes the output at the end and is removed after an error.

    Raises:
        ArgumentError: The output exists, or cannot be written.
    """
    check_path("output", output)
    if os.path.lexists(output):
        raise ArgumentError("output", f"{output} exists; give another place, or move it away")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, since a rename is atomic only within a file system.
        with TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            part = Path(folder) / output.name
            yield part
            part.rename(output)
    except OSError as error:
        raise ArgumentError(
            "output", f"{output} cannot be written to ({error.strerror or error}); fix this or give another place"
        ) from error
