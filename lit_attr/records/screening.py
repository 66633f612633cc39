"""Which contrasts a run keeps by the model's answers: `screened.jsonl`, one JSON object a line.

Axes: N contrasts; 2 the halves of a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from lit_attr.errors import UserError
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.table.keys import Hashes, hash_key, hashes_in
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


class Answered(NamedTuple):
    """The model's answers to contrasts.

    Attributes:
        ranks_N: int64, how many tokens are more likely than the true one.
        differences_N: float64, logit_true − logit_false.
        is_kept_N: Whether the run attributes each.
    """

    ranks_N: NDArray[np.int64]
    differences_N: NDArray[np.float64]
    is_kept_N: NDArray[np.bool_]


_DECODER = msgspec.json.Decoder(Screened)


def read_screened(path: Path) -> tuple[Hashes, Answered]:
    """The contrasts that earlier runs in the folder have screened: the hashes of their keys, and the answers.

    Raises:
        UserError: A line is damaged.
    """
    hashes = bytearray()
    ranks, differences, kept = array("q"), array("d"), array("b")
    # Line by line: a run may have millions.
    with path.open("rb") if path.exists() else nullcontext(()) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = _DECODER.decode(line)
            except msgspec.MsgspecError as error:
                reason = f"line {number} is damaged ({error}); delete the file and run again"
                raise UserError(f"{path}: {reason}") from error
            hashes += hash_key(row.key)
            ranks.append(row.rank_true)
            differences.append(row.logit_diff)
            kept.append(row.is_kept)
    answers = Answered(np.array(ranks, np.int64), np.array(differences, np.float64), np.array(kept, np.bool_))
    return hashes_in(bytes(hashes)), answers


def write_screened(path: Path, rows: Iterable[Screened]) -> None:
    """Writes the screened contrasts, whole or not at all."""
    write_bytes(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
