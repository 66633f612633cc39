"""Files of a run made or changed by hand, sealed as lit-attr seals them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_attr.records.files import file_name, write_sealed

RUN = "handmade"


def write_manifest(folder: Path, **settings: Any) -> Path:
    """Writes a manifest with these groups of settings."""
    path = folder / "manifest.json"
    head = {"format": "lit-attr/manifest", "version": 2, "run": RUN}
    write_sealed(path, {**head, "model": {}, "data": {}, **settings})
    return path


def write_batch(folder: Path, batch: dict[str, Any]) -> Path:
    """Writes a batch file of the run whose manifest is in the folder, under its proper name."""
    first = batch["examples"][0]
    path = folder / "batches" / file_name(first["id"], first["step"])
    run = json.loads((folder / "manifest.json").read_bytes())["run"]
    write_sealed(path, {**{name: value for name, value in batch.items() if name != "digest"}, "run": run})
    return path


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes a file as lit-attr itself could have written it."""
    content = json.loads(path.read_bytes())
    content.pop("digest", None)
    change(content)
    write_sealed(path, content)
