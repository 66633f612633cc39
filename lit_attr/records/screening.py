"""Which contrasts a run keeps by the model's answers: `screened.jsonl`, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.records.files import write_bytes

# All contrasts; those whose true answer is the most likely next token, or only above the false one.
Only = Literal["all", "known", "preferred"]


class Screened(msgspec.Struct, frozen=True):
    """A contrast and the model's answer.

    Attributes:
        id: The fact's id.
        step: Which token of the answers is compared.
        rank_true: How many tokens are more likely than the true one.
        logit_diff: logit_true − logit_false.
        is_kept: Whether the run attributes the contrast.
    """

    id: int | str
    step: int
    rank_true: int
    logit_diff: float
    is_kept: bool

    @property
    def key(self) -> ContrastKey:
        """The contrast's key."""
        return self.id, self.step


_DECODER = msgspec.json.Decoder(Screened)


def read_screened(path: Path) -> dict[ContrastKey, Screened]:
    """The contrasts that earlier runs in the folder have screened.

    Raises:
        UserError: A line is damaged.
    """
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = _DECODER.decode(line)
        except msgspec.MsgspecError as error:
            reason = f"line {number} is damaged ({error}); delete the file and run again"
            raise UserError(f"{path}: {reason}") from error
        found[row.key] = row
    return found


def write_screened(path: Path, rows: Iterable[Screened]) -> None:
    """Writes the screened contrasts, whole or not at all."""
    write_bytes(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
