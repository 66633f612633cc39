"""What a run starts from: which contrasts are done, and which exact effects there are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lit_attr.errors import ArgumentError
from lit_attr.facts.contrasts import Contrast, ContrastKey
from lit_attr.records.schema import Example


@dataclass
class RunState:
    """The state of a run's folder when the run starts. It can be sent to the run's other processes.

    Attributes:
        done: Contrasts whose scores are on disk.
        refused: Contrasts that were refused while the model ran.
        exact: Contrasts whose exact effects are on disk; False where they were refused.
        digests: What each contrast on disk was, whatever its id.
        folder: The run's folder. None where nothing is written.
        spares: Contrasts that replace refused ones in the sample, each with its place in the run's random order.
            The data module sets them.
    """

    done: frozenset[ContrastKey] = frozenset()
    refused: frozenset[ContrastKey] = frozenset()
    exact: Mapping[ContrastKey, bool] = field(default_factory=dict)
    digests: Mapping[ContrastKey, str] = field(default_factory=dict)
    folder: Path | None = None
    spares: Sequence[tuple[int, Contrast]] = ()
    _next: int = field(default=0, init=False, repr=False)

    def is_done(self, key: ContrastKey) -> bool:
        """Whether a contrast has scores on disk or was refused while the model ran."""
        return key in self.done or key in self.refused

    def rows_to_do(self, contrasts: Sequence[Contrast]) -> list[int]:
        """The rows of a batch that are not done: a loader that ignores the earlier run yields all of them again.

        Raises:
            ArgumentError: A contrast on disk has the id and step of one in the batch, but is another one, as a
                fault of `source`.
        """
        for contrast in contrasts:
            digest = self.digests.get(contrast.key)
            if digest is not None and digest != digest_contrast(contrast):
                raise ArgumentError(
                    "source",
                    f"id {contrast.fact.id!r} was another fact in the run that wrote {self.folder}; give another "
                    "folder",
                )
        return [row for row, contrast in enumerate(contrasts) if not self.is_done(contrast.key)]

    def next_spare(self) -> tuple[int, Contrast] | None:
        """Claims the next spare for this process, with its place; None where no spare is left.

        Raises:
            ArgumentError: The folder cannot be written to, as a fault of `output_dir`.
        """
        while self._next < len(self.spares):
            place, contrast = self.spares[self._next]
            self._next += 1
            if contrast.key in self.exact or contrast.key in self.refused:
                continue
            if self.folder is None or _claim(self.folder, place):
                return place, contrast
        return None


def remove_claims(folder: Path) -> None:
    """Removes all claims of spares from a run's folder."""
    for path in _exact_folder(folder).glob(".claim-*"):
        path.unlink(missing_ok=True)


def digest_contrast(contrast: Contrast) -> str:
    """A hash of the fact and the tokens that a contrast compares, whatever its id."""
    fact = contrast.fact
    texts = fact.prompt, fact.subject, fact.target_true, fact.target_false
    return _digest(*texts, contrast.true_token_id, contrast.false_token_id, *contrast.tokens)


def digest_example(example: Example) -> str:
    """The same hash of a contrast on disk."""
    texts = example.prompt, example.subject, example.target_true, example.target_false
    return _digest(*texts, example.true_token_id, example.false_token_id, *example.tokens)


def _digest(*words: str | int) -> str:
    return hashlib.sha256(repr(words).encode("utf-8", "backslashreplace")).hexdigest()[:16]


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
        raise ArgumentError("output_dir", f"{folder} cannot be written to ({error.strerror or error})") from error
