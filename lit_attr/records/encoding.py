"""What a batch is on disk, and how a file is written whole or not at all.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.facts.rows import Rejected

FORMAT_VERSION = 1
BATCH_FORMAT = "lit-attr/attributions"
MANIFEST_FORMAT = "lit-attr/manifest"
NUMBERS = ("logit_true", "logit_false", "logit_diff", "prob_true", "prob_false", "rank_true")


def batch_record(batch: AttributionBatch) -> dict[str, Any]:
    """A batch as the JSON object of one batch file. Every number must be finite: see `split_finite`."""
    columns = {name: value.tolist() for name, value in batch._asdict().items() if name.endswith("_B")}
    kinds = {"sum": batch.scores_sum_BLT, "l2": batch.scores_l2_BLT}
    scores = {kind: scores_BLT.numpy() for kind, scores_BLT in kinds.items() if scores_BLT is not None}
    examples = []
    for row, contrast in enumerate(batch.contrasts):
        fact, width = contrast.fact, len(contrast.tokens)
        examples.append(
            {
                "id": fact.id,
                "relation_id": fact.relation_id,
                "prompt": fact.prompt,
                "subject": fact.subject,
                "target_true": fact.target_true,
                "target_false": fact.target_false,
                "step": contrast.step,
                "tokens": contrast.tokens,
                "roles": contrast.roles,
                "subject_span": contrast.subject_span,
                "true_token": contrast.true_token,
                "false_token": contrast.false_token,
                "true_token_id": contrast.true_token_id,
                "false_token_id": contrast.false_token_id,
                "logit_true": columns["logit_true_B"][row],
                "logit_false": columns["logit_false_B"][row],
                "logit_diff": columns["logit_true_B"][row] - columns["logit_false_B"][row],
                "prob_true": columns["prob_true_B"][row],
                "prob_false": columns["prob_false_B"][row],
                "rank_true": columns["rank_true_B"][row],
                "scores": {
                    kind: np.ascontiguousarray(scores_BLT[row, :, :width]) for kind, scores_BLT in scores.items()
                },
            }
        )
    return {
        "format": BATCH_FORMAT,
        "version": FORMAT_VERSION,
        "layers": batch.layers,
        "component": batch.component,
        "rule": batch.rule,
        "examples": examples,
    }


def split_finite(batch: AttributionBatch) -> tuple[AttributionBatch, list[Rejected]]:
    """The contrasts all of whose numbers are finite, and the reason for each of the others."""
    numbers = (value for value in batch if isinstance(value, torch.Tensor))
    finite_B = torch.stack([value.reshape(len(value), -1).isfinite().all(1) for value in numbers]).all(0)
    if finite_B.all():
        return batch, []
    rejected = [
        Rejected(
            contrast.fact.row,
            contrast.fact.id,
            f"step {contrast.step}: a score or logit is not finite; model.dtype bfloat16 or float32 may mend it",
        )
        for contrast, finite in zip(batch.contrasts, finite_B.tolist(), strict=True)
        if not finite
    ]
    return batch.select(finite_B.nonzero().flatten().tolist()), rejected


def read_batch(path: Path) -> dict[str, Any]:
    """Reads a batch file, with the scores as float64 arrays of layers × tokens.

    Raises:
        UserError: It is of another format or a newer version, or not what its format says: a field that is not
            there, a shape, or a number that is not finite.
    """
    record = read_json(path)
    check_header(record, path, BATCH_FORMAT)
    try:
        for name in ("component", "rule"):
            if not isinstance(record[name], str):
                raise TypeError(f"{name} is no text")
        for example in record["examples"]:
            example["scores"] = _scores(example, len(record["layers"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path}: not a whole batch file ({reason}); move it away and run again") from error
    return record


def _scores(example: dict[str, Any], layers: int) -> dict[str, np.ndarray]:
    """The scores of an example whose numbers are all finite and whose shapes agree."""
    tokens = len(example["tokens"])
    if len(example["roles"]) != tokens:
        raise ValueError(f"id {example['id']!r} has {tokens} tokens and {len(example['roles'])} roles")
    start, stop = example["subject_span"]
    if not 0 <= start < stop <= tokens:
        raise ValueError(f"id {example['id']!r} has {tokens} tokens and its subject at {start} to {stop}")
    numbers = np.array([example[name] for name in NUMBERS], dtype=float)
    # Not every rule has the norms.
    kinds = {"sum": example["scores"]["sum"], **example["scores"]}
    scores = {kind: np.array(values, dtype=float) for kind, values in kinds.items()}
    for kind, scores_LT in scores.items():
        if scores_LT.shape != (layers, tokens):
            raise ValueError(f"id {example['id']!r} has {kind} scores of shape {scores_LT.shape}")
    if not all(np.isfinite(values).all() for values in (numbers, *scores.values())):
        raise ValueError(f"id {example['id']!r} has a number that is not finite")
    return scores


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; NumPy arrays become lists."""
    write_bytes(path, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, even when the machine stops in between."""
    # In the same folder, since a rename is atomic only within a file system; hidden, so that no reader takes it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_header(value: Mapping[str, Any], path: Path, wanted: str) -> None:
    """Refuses a JSON object of another format, or of another version of it.

    Raises:
        UserError: It is one.
    """
    version = value.get("version")
    if value.get("format") != wanted or not isinstance(version, int):
        raise UserError(f"{path}: not a file of the format {wanted}; give another folder, or move it away")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path}: of format version {version}, and this lit-attr knows {FORMAT_VERSION}; upgrade lit-attr"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: It is not one.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error}); move it away") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; move it away")
    return value
