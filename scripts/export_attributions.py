"""A run's records for other programs: `python scripts/export_attributions.py OUT --to parquet`.

    parquet    one file, a row a contrast with all of its fields; scores are nested lists, layers and then tokens
    csv        one file, a row a contrast, layer and token (in pandas `keep_default_na=False`: tokens can be `NA`)
    inseq      a folder of files for `inseq.FeatureAttributionOutput.load`: `ex_ID.json` has a contrast's scores in
               all layers; with `--per layer`, `layer_LAYER_ex_ID.json` has those in one layer, named as in the
               example of factual knowledge in Inseq's documentation

Parquet and CSV files hold every kind of score there is, Inseq's the signed one, `sum`. What is written is there
whole or not at all, and nothing is overwritten.

Axes: L layers, T tokens of one contrast and in Inseq's files the answer's after them, G generated tokens (one).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lit_attr import UserError, load_attributions
from lit_attr.records.encoding import read_json
from lit_attr.views.pictures import safe_tag

PROGRAM = "export_attributions.py"
OUTPUTS = {"parquet": "attributions.parquet", "csv": "attributions.csv", "inseq": "inseq"}
ROW_GROUP = 1_024  # contrasts, as many as are in memory
# Columns of the long form: which contrast, where in it, and, after the scores, what the model answered.
CONTRAST = ("id", "relation_id", "step", "rule", "component")
PLACE = ("layer", "position", "token", "role")
OUTCOME = ("logit_diff", "rank_true")
# Inseq's names for what it computes beside attributions, and ours.
STEP_SCORES = {
    "logit": "logit_true",
    "contrast_logits": "logit_false",
    "contrast_logits_diff": "logit_diff",
    "probability": "prob_true",
    "contrast_prob": "prob_false",
}
NAME_CHARACTERS = 40  # of an id: up to four bytes each, of the 255 that a file's name can have


def read_contrasts(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of a run, one batch file in memory at a time.

    Raises:
        UserError: There is none, or one lacks a field, or has another one or another kind of score than the first.
    """
    schema = orjson.loads((files("lit_attr") / "assets" / "attributions.schema.json").read_bytes())
    wanted = set(schema["properties"]["examples"]["items"]["required"])
    first = True
    for record in load_attributions(folder):
        fields = {*record, *record["scores"]}
        wanted, first = wanted | fields if first else wanted, False
        # A table has the same columns in every row: what is missing would be empty in it, and the rest dropped.
        if odd := sorted(wanted ^ fields):
            raise UserError(
                f"{folder}: id {record['id']!r} lacks {', '.join(odd)}, or has it alone; move its batch file away "
                "and run again"
            )
        yield record
    if first:
        raise UserError(f"{folder}: there is no contrast in it; give the output folder of a run that has some")


def write_parquet(folder: Path, path: Path) -> None:
    """Writes one row a contrast; the columns are those of `load_attributions(folder, "dataset")`."""
    # A column has one type: ids are numbers only where all of them are.
    convert = int if all(isinstance(record["id"], int) for record in read_contrasts(folder)) else str
    rows = (
        {
            **record,
            "id": convert(record["id"]),
            "scores": {kind: scores_LT.tolist() for kind, scores_LT in record["scores"].items()},
        }
        for record in read_contrasts(folder)
    )
    table = pa.Table.from_pylist(list(islice(rows, ROW_GROUP)))
    # Python's own file, whose errors say no more than what is wrong.
    with path.open("wb") as stream, pq.ParquetWriter(stream, table.schema, compression="zstd") as writer:
        while len(table):
            writer.write_table(table)
            table = pa.Table.from_pylist(list(islice(rows, ROW_GROUP)), table.schema)


def write_csv(folder: Path, path: Path) -> None:
    """Writes one row a contrast, layer and token, the kinds of score side by side."""
    kinds = list(next(read_contrasts(folder))["scores"])
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*CONTRAST, *PLACE, *kinds, *OUTCOME])
        for record in read_contrasts(folder):
            contrast, outcome = ([record[name] for name in names] for names in (CONTRAST, OUTCOME))
            tokens = list(zip(record["tokens"], record["roles"], strict=True))
            for row, layer in enumerate(record["layers"]):
                scores = zip(*(record["scores"][kind][row].tolist() for kind in kinds), strict=True)
                for position, (token, numbers) in enumerate(zip(tokens, scores, strict=True)):
                    writer.writerow([*contrast, layer, position, *token, *numbers, *outcome])


def write_inseq(folder: Path, path: Path, *, by_layer: bool) -> None:
    """Writes Inseq's own objects, in a form that it can show, aggregate and merge."""
    try:
        from inseq.data.attribution import (
            CoarseFeatureAttributionSequenceOutput,
            FeatureAttributionOutput,
            MultiDimensionalFeatureAttributionSequenceOutput,
        )
        from inseq.utils.typing import TokenWithId
    except ImportError as error:
        raise UserError(f"--to inseq: it needs Inseq ({error}); pip install 'lit-attr[peers]'") from error
    kind = CoarseFeatureAttributionSequenceOutput if by_layer else MultiDimensionalFeatureAttributionSequenceOutput
    model = read_json(folder / "manifest.json").get("model", {}).get("model_name")
    path.mkdir()
    for record in read_contrasts(folder):
        tokens, layers = record["tokens"], record["layers"]
        # Inseq's own id of what is no one token of a vocabulary: records do not have the ids of the context.
        context = [TokenWithId(token, -1) for token in tokens]
        true, false = record["true_token"], record["false_token"]
        # As Inseq writes two tokens that are compared.
        answer = TokenWithId(f"{false} → {true}", -1)
        if record["true_token_id"] == record["false_token_id"]:
            answer = TokenWithId(true, record["true_token_id"])
        span = {"attr_pos_start": len(tokens), "attr_pos_end": len(tokens) + 1}
        step_scores = {theirs: torch.tensor([record[ours]]) for theirs, ours in STEP_SCORES.items()}
        # What the answer's token itself contributes, Inseq has as NaN too.
        scores_TGL = torch.full((len(tokens) + 1, 1, len(layers)), torch.nan)
        scores_TGL[:-1, 0] = torch.from_numpy(record["scores"]["sum"].T)
        parts = {f"ex_{file_name(record)}": (layers, scores_TGL)}
        if by_layer:
            by_place = zip(layers, scores_TGL.unbind(-1), strict=True)
            parts = {f"layer_{layer}_ex_{file_name(record)}": ([layer], scores) for layer, scores in by_place}
        for name, (part, scores) in parts.items():
            # Of Inseq's classes those that show scores as they are; others norm them first, by default.
            sequence = kind(
                source=context,
                target=[*context, answer],
                target_attributions=scores,
                step_scores=step_scores,
                sequence_scores={},
                **span,
            )
            # The names up to the texts are Inseq's: it merges outputs whose settings are the same.
            info = {
                "attribution_method": "layer_gradient_x_activation",
                "attributed_fn": "contrast_logits_diff_fn",
                "attributed_fn_args": {"contrast_targets": record["prompt"] + record["target_false"]},
                "attribute_target": False,
                "constrained_decoding": True,
                "include_eos_baseline": False,
                "model_name": model,
                "step_scores": list(STEP_SCORES),
                **span,
                "input_texts": [record["prompt"]],
                "generated_texts": [record["prompt"] + record["target_true"]],
                **{field: record[field] for field in CONTRAST},
                "layers": part,
            }
            FeatureAttributionOutput([sequence], info=info).save(path / f"{name}.json")


def file_name(record: dict[str, Any]) -> str:
    """What tells a contrast's file from those of all other ids and steps, also where case does not count."""
    name = str(record["id"])
    if isinstance(record["id"], str):
        name = f"{safe_tag(name)[:NAME_CHARACTERS]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}_step_{record['step']}" if record["step"] else name


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A place to write to that becomes the output at the end, and is gone after an error.

    Raises:
        UserError: There is something at the output already, or it cannot be written.
    """
    if output.exists():
        raise UserError(f"--output: {output} is there already; give another place, or move it away")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, since a rename is atomic only within a file system.
        with TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
            part = Path(folder) / output.name
            yield part
            part.rename(output)
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written to ({error.strerror or error}); mend that or give another place"
        ) from error


def main(args: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="A run's records for other programs.")
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="output folder of a run")
    add("--to", choices=OUTPUTS, required=True, help="what to write")
    listed = ", ".join(OUTPUTS.values())
    add("--output", type=Path, metavar="PATH", help=f"file, or folder for Inseq's (default: in OUT, {listed})")
    add("--per", choices=("example", "layer"), help="with --to inseq, what a file holds (default: example)")
    options = parser.parse_args(args)
    write: dict[str, Callable[[Path, Path], None]] = {
        "parquet": write_parquet,
        "csv": write_csv,
        "inseq": partial(write_inseq, by_layer=options.per == "layer"),
    }
    output = options.output or options.out / OUTPUTS[options.to]
    try:
        if options.per and options.to != "inseq":
            raise UserError(f"--per: it is for --to inseq, not {options.to}; leave it out")
        # Nothing is made for what is no run.
        next(read_contrasts(options.out))
        with whole(output) as part:
            write[options.to](options.out, part)
    except (UserError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
