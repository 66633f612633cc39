"""Batches of contrasts as tensors.

Axes: B contrasts of a batch, T tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_attr.facts.contrasts import Contrast


class ContrastBatch(NamedTuple):
    """Contrasts side by side, padded on the right.

    Causal attention never looks to the right, so no real token sees the padding and no mask is needed.

    Attributes:
        contrasts: The contrasts, one a row.
        token_ids_BT: int64. A shorter row is padded with its own last token.
        last_B: int64, the position of each row's last token, where its logits are read.
        true_token_ids_B: int64.
        false_token_ids_B: int64.
        places: Each contrast's place in the random order of the run; an entry is None where the two tokens do not
            differ. None as a whole from a loader that knows no such order.
        comparison: Set on a batch of one contrast whose exact effects are asked for: `(k, n)` for the k-th of n
            comparisons of this process, from 1.
        is_pilot: Whether the contrasts are those of an adaptive run's pilot.
        donor_token_ids_BT: int64, the tokens of each contrast's donor, which are as many as its own, padded alike.
            None where a contrast has no donor.
    """

    contrasts: tuple[Contrast, ...]
    token_ids_BT: Tensor
    last_B: Tensor
    true_token_ids_B: Tensor
    false_token_ids_B: Tensor
    places: tuple[int | None, ...] | None = None
    comparison: tuple[int, int] | None = None
    is_pilot: bool = False
    donor_token_ids_BT: Tensor | None = None

    def to(self, device: torch.device | str) -> ContrastBatch:
        """The same batch on another device. From pinned memory, the copy does not wait for the device."""
        # What is copied to the CPU may be read at once, so that has to be waited for.
        is_waited_for = torch.device(device).type == "cpu"
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=not is_waited_for))

    def pin_memory(self) -> ContrastBatch:
        """The same batch in pinned memory; a `DataLoader` with `pin_memory` calls this."""
        return self._mapped(Tensor.pin_memory)

    def clone(self) -> ContrastBatch:
        """The same batch in tensors of its own."""
        return self._mapped(Tensor.clone)

    def split(self) -> tuple[ContrastBatch, ContrastBatch]:
        """The first and the second half of the batch, each as wide as the whole."""
        rows = range(len(self.contrasts))
        half = len(rows) // 2
        return self.select(rows[:half]), self.select(rows[half:])

    def select(self, rows: Sequence[int]) -> ContrastBatch:
        """Some of the contrasts, as wide as the whole batch."""
        batch = self._mapped(lambda tensor: tensor[list(rows)])
        return batch._replace(
            contrasts=tuple(self.contrasts[row] for row in rows),
            places=None if self.places is None else tuple(self.places[row] for row in rows),
        )

    def narrowed(self, width: int) -> ContrastBatch:
        """The same contrasts without the padding after some number of tokens, which is at least the longest's."""
        donors_BT = self.donor_token_ids_BT
        return self._replace(
            token_ids_BT=self.token_ids_BT[:, :width],
            donor_token_ids_BT=None if donors_BT is None else donors_BT[:, :width],
        )

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> ContrastBatch:
        return self._replace(
            token_ids_BT=function(self.token_ids_BT),
            last_B=function(self.last_B),
            true_token_ids_B=function(self.true_token_ids_B),
            false_token_ids_B=function(self.false_token_ids_B),
            donor_token_ids_BT=None if self.donor_token_ids_BT is None else function(self.donor_token_ids_BT),
        )


def collate_contrasts(
    contrasts: Sequence[Contrast],
    places: Sequence[int | None] | None = None,
    comparison: tuple[int, int] | None = None,
    is_pilot: bool = False,
    width: int = 0,
) -> ContrastBatch:
    """Makes a batch of contrasts.

    Args:
        contrasts: The contrasts, at least one.
        places: Each one's place in the random order of the run, see `ContrastBatch`.
        comparison: Which comparison of this process the batch is for, see `ContrastBatch`.
        is_pilot: Whether the contrasts are of a pilot, see `ContrastBatch`.
        width: The least number of tokens to pad to. On some models the last digits of a row depend on it.
    """
    rows = [contrast.token_ids for contrast in contrasts]
    donors = [contrast.donor.token_ids for contrast in contrasts if contrast.donor is not None]
    width = max(width, *map(len, rows))
    return ContrastBatch(
        contrasts=tuple(contrasts),
        token_ids_BT=_padded(rows, width),
        last_B=torch.tensor([len(row) - 1 for row in rows]),
        true_token_ids_B=torch.tensor([contrast.true_token_id for contrast in contrasts]),
        false_token_ids_B=torch.tensor([contrast.false_token_id for contrast in contrasts]),
        places=None if places is None else tuple(places),
        comparison=comparison,
        is_pilot=is_pilot,
        donor_token_ids_BT=_padded(donors, width) if len(donors) == len(rows) else None,
    )


def _padded(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
    # A padding token would do as well, but transformers warns of one that comes without a mask.
    return torch.tensor([row + row[-1:] * (width - len(row)) for row in rows])
