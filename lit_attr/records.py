"""What is on disk: batch files of attributions, the manifest, the refused rows and the summary.

Axes: L layers, T tokens of one contrast.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from lit_attr.attribution import AttributionBatch
from lit_attr.errors import UserError
from lit_attr.facts import Rejected

FORMAT_VERSION = 1
BATCH_FORMAT = "lit-attr/attributions"
LIBRARIES = ("lit-attr", "torch", "transformers", "bitsandbytes", "lightning", "tokenizers")


def batch_record(batch: AttributionBatch) -> dict[str, Any]:
    """A batch as the JSON object of one batch file. Every number must be finite: see `split_finite`."""
    columns = {name: value.tolist() for name, value in batch._asdict().items() if name.endswith("_B")}
    sums_BLT, norms_BLT = batch.scores_sum_BLT.numpy(), batch.scores_l2_BLT.numpy()
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
                    "sum": np.ascontiguousarray(sums_BLT[row, :, :width]),
                    "l2": np.ascontiguousarray(norms_BLT[row, :, :width]),
                },
            }
        )
    return {
        "format": BATCH_FORMAT,
        "version": FORMAT_VERSION,
        "layers": batch.layers,
        "component": batch.component,
        "rule": "gradient",
        "examples": examples,
    }


def split_finite(batch: AttributionBatch) -> tuple[AttributionBatch, list[Rejected]]:
    """The contrasts all of whose numbers are finite, and the reason for each of the others."""
    numbers = (value for name, value in batch._asdict().items() if name.endswith(("_BLT", "_B")))
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


class OutputFolder:
    """The folder one run writes to, and a later run of the same settings goes on in.

    Args:
        path: The folder. Nothing is made before `open`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.batches = self.path / "batches"
        self.manifest = self.path / "manifest.json"
        self.rejected = self.path / "rejected.jsonl"
        self.summary = self.path / "summary.json"

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Compares the settings of what is here with those of this run.

        Raises:
            UserError: They differ in something that changes a number, or what is here is not readable.
        """
        if not self.manifest.exists():
            if any(self.batches.glob("*.json")):
                raise UserError(f"writer.output_dir: {self.path} has batches but no manifest; give another folder")
            return
        written = read_json(self.manifest)
        if written.get("version") != FORMAT_VERSION:
            raise UserError(
                f"writer.output_dir: {self.manifest} is of format version {written.get('version')}, "
                f"this lit-attr writes {FORMAT_VERSION}; give another folder"
            )
        for group, values in settings.items():
            for name, value in values.items():
                before = written.get(group, {}).get(name)
                # The same rows from another place are the same rows: `content` tells.
                if before != value and (group, name) != ("data", "source"):
                    raise UserError(
                        f"writer.output_dir: {self.path} was written with {group}.{name} {before!r}, this run has "
                        f"{value!r}; give another folder, or writer.overwrite: true to start afresh"
                    )

    def open(self, settings: Mapping[str, Mapping[str, Any]], rejected: Iterable[Rejected]) -> None:
        """Makes the folder, with the manifest and the refused rows. One process does this."""
        try:
            self.batches.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"writer.output_dir: {self.path} cannot be made ({error.strerror})") from error
        if not self.manifest.exists():
            write_json(
                self.manifest,
                {
                    "format": "lit-attr/manifest",
                    "version": FORMAT_VERSION,
                    "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    **settings,
                    "libraries": {name: _version(name) for name in LIBRARIES},
                },
            )
        write_bytes(self.rejected, b"".join(_json_line(row) for row in rejected))

    def move_aside(self) -> None:
        """Puts an earlier run's files into a folder of their own beside the new ones."""
        known = [path for path in (self.batches, self.manifest, self.rejected, self.summary) if path.exists()]
        if known:
            aside = Path(
                tempfile.mkdtemp(prefix=datetime.now().strftime("replaced-%Y%m%d-%H%M%S-"), dir=self.path)
            )
            for path in known:
                path.rename(aside / path.name)

    def write_batch(self, batch: AttributionBatch) -> None:
        """Writes a batch file, whole or not at all."""
        contrast = batch.contrasts[0]
        write_json(self.batches / f"{_file_stem(contrast.fact.id)}-{contrast.step}.json", batch_record(batch))

    def add_rejected(self, rejected: Iterable[Rejected]) -> None:
        """Appends refused rows; several processes may at once."""
        with self.rejected.open("ab") as stream:
            stream.write(b"".join(_json_line(row) for row in rejected))

    def read_batches(self) -> Iterator[dict[str, Any]]:
        """The objects of all batch files."""
        for path in sorted(self.batches.glob("*.json")):
            record = read_json(path)
            if record.get("format") != BATCH_FORMAT or not isinstance(record.get("examples"), list):
                raise UserError(f"writer.output_dir: {path} is not a batch file of lit-attr; move it away")
            yield record

    def count_rejected(self) -> int:
        """How many rows were refused."""
        return self.rejected.read_bytes().count(b"\n")


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


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: It is not one.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UserError(f"writer.output_dir: {path} is not JSON ({error}); move it away") from error
    if not isinstance(value, dict):
        raise UserError(f"writer.output_dir: {path} is not a JSON object; move it away")
    return value


def _json_line(row: Rejected) -> bytes:
    # A row may hold what UTF-8 cannot write (lone surrogates).
    clean = [v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in row]
    return orjson.dumps(dict(zip(row._fields, clean, strict=True)), option=orjson.OPT_APPEND_NEWLINE)


def _file_stem(contrast_id: int | str) -> str:
    # Text from the data never becomes a path.
    if isinstance(contrast_id, int):
        return f"{contrast_id:08d}"
    return hashlib.sha256(contrast_id.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
