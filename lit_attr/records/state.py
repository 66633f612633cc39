"""What a run starts from: its settings, which contrasts are done, and which exact effects there are."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from lit_attr.errors import ArgumentError
from lit_attr.facts.contrasts import Contrast, ContrastKey, digest_contrast, digest_of
from lit_attr.records.files import briefly, own_files
from lit_attr.records.schema import FORMAT_VERSION, MANIFEST_FORMAT, Example
from lit_attr.records.scored import Scored

# What a larger limit changes in the manifest's data.
EXTENDED = ("limit", "contrasts", "content")
LIBRARIES = ("lit-attr", "torch", "transformers", "bitsandbytes", "lightning", "tokenizers")

_CLAIM = re.compile(r"\.claim-\d+")


@dataclass
class RunState:
    """The state of a run's folder when the run starts. It can be sent to the run's other processes.

    Attributes:
        done: Contrasts whose scores are on disk, and what each was.
        refused: Contrasts that were refused while the model ran.
        exact: Contrasts whose exact effects are on disk; False where they were refused.
        folder: The run's folder. None where nothing is written.
        pilots: Contrasts of an adaptive run's pilot that earlier runs have begun or fitted the error model to.
        has_error_model: Whether the run's error model is on disk.
        pilot: The contrasts of the pilot. The data module sets them.
        averaged: The contrasts over whose tokens mean writes are taken. The data module sets them.
        spares: Contrasts that replace refused ones in the sample, each with its place in the run's random order.
            The data module sets them.
    """

    done: Scored = field(default_factory=Scored)
    refused: frozenset[ContrastKey] = frozenset()
    exact: Mapping[ContrastKey, bool] = field(default_factory=dict)
    folder: Path | None = None
    pilots: frozenset[ContrastKey] = frozenset()
    has_error_model: bool = False
    pilot: Sequence[Contrast] = ()
    averaged: Sequence[Contrast] = ()
    spares: Sequence[tuple[int, Contrast]] = ()
    _next: int = field(default=0, init=False, repr=False)

    def is_done(self, key: ContrastKey) -> bool:
        """Whether a contrast has scores on disk or was refused while the model ran."""
        return key in self.done or key in self.refused

    def rows_to_do(self, contrasts: Sequence[Contrast]) -> list[int]:
        """The rows of a batch that are not done: a loader that ignores the earlier run yields all of them again.

        Raises:
            ArgumentError: See `check_facts`.
        """
        self.check_facts(contrasts)
        return [row for row, contrast in enumerate(contrasts) if not self.is_done(contrast.key)]

    def check_facts(self, contrasts: Iterable[Contrast]) -> None:
        """Compares contrasts with those on disk.

        Raises:
            ArgumentError: One on disk has the id and step of one of these, but is another one, as a fault of
                `source`.
        """
        for contrast in contrasts:
            digest = self.done.digest(contrast.key)
            if digest is not None and digest != digest_contrast(contrast):
                raise ArgumentError(
                    "source",
                    f"id {briefly(contrast.fact.id)} was another fact in the run that wrote {self.folder} "
                    f"(batches/{self.done.file(contrast.key)}); give another folder",
                )

    def next_spare(self) -> tuple[int, Contrast] | None:
        """Claims the next spare for this process, with its place.

        Returns:
            None where no spare is left, or where an interrupted run has computed the next one already.

        Raises:
            ArgumentError: The folder cannot be written to, as a fault of `output_dir`.
        """
        while self._next < len(self.spares):
            place, contrast = self.spares[self._next]
            self._next += 1
            if contrast.key in self.refused or self.exact.get(contrast.key) is False:
                continue
            if self.folder is None or _claim(self.folder, place):
                return None if contrast.key in self.exact else (place, contrast)
        return None


def new_manifest(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a run that begins, with these settings by group."""
    # The same settings and rows give the same name, wherever the rows are.
    named = {
        group: {name: each for name, each in values.items() if name != "source"}
        for group, values in settings.items()
    }
    return {
        "format": MANIFEST_FORMAT,
        "version": FORMAT_VERSION,
        "run": hashlib.sha256(orjson.dumps(named, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **settings,
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def extended_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], content_of: Callable[[int], str]
) -> Sequence[str]:
    """What may differ from an earlier run: with a larger limit, the rows that follow those of that run."""
    limit, larger, count = before.get("limit"), now.get("limit"), before.get("contrasts")
    if limit is None or count is None or (larger is not None and larger <= limit):
        return ()
    is_same = count <= now["contrasts"] and content_of(count) == before.get("content")
    return EXTENDED if is_same else ("limit", "contrasts")


def remove_claims(folder: Path, *, strict: bool = True) -> None:
    """Removes all claims of spares from a run's folder.

    Raises:
        ArgumentError: See `own_files`, whose `strict` this is.
    """
    for path in own_files(_exact_folder(folder), _CLAIM, strict=strict):
        path.unlink(missing_ok=True)


def digest_example(example: Example) -> int:
    """The hash of a contrast on disk that `digest_contrast` makes of a contrast."""
    texts = example.prompt, example.subject, example.target_true, example.target_false
    return digest_of(*texts, example.true_token_id, example.false_token_id, *example.tokens)


def _exact_folder(folder: Path) -> Path:
    return folder / "exact"


def _claim(folder: Path, place: int) -> bool:
    """Whether this process is the first of the run to claim a place."""
    try:
        with (_exact_folder(folder) / f".claim-{place}").open("x"):
            return True
    except FileExistsError:
        return False
    except OSError as error:
        raise ArgumentError(
            "output_dir", f"{folder} cannot be written to ({error.strerror or error}); run again"
        ) from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
