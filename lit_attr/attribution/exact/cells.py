"""Cells, and which of them go through the model together.

Axes: B contrasts, L chosen layers, T tokens (padded on the right), N cells, H width of the component's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The cost of one more pass, in tokens that go through all layers. Measured on a CPU core, where it is mostly that
# of another read of the weights.
PASS_TOKENS = 16


class Cells(NamedTuple):
    """Some cells of a batch. All tensors are int64 on the CPU.

    Attributes:
        row_N: The row of the batch.
        place_N: The place on the axis of chosen layers.
        token_N: The token.
    """

    row_N: Tensor
    place_N: Tensor
    token_N: Tensor

    @classmethod
    def of(cls, is_wanted_BLT: Tensor) -> Cells:
        """The cells of a mask, by row."""
        return cls(*is_wanted_BLT.nonzero().unbind(1))

    def select(self, index: Tensor) -> Cells:
        """Some of the cells."""
        return Cells(*(values_N[index] for values_N in self))


def replaced_by_place(cells: Cells, window: int, components: int) -> dict[int, tuple[Tensor, Cells]]:
    """What is replaced at each place: the indices of the cells whose windows have it, and the cells at the place.

    Args:
        cells: The cells; each is the lowest of its window.
        window: How many layers of one component a window has.
        components: How many components each layer has on the axis.
    """
    replaced = {}
    for place in range(int(cells.place_N.max()) + (window - 1) * components + 1):
        above_N = place - cells.place_N
        is_in_window_N = (above_N >= 0) & (above_N < window * components) & (above_N % components == 0)
        index_N = is_in_window_N.nonzero()[:, 0]
        if len(index_N):
            places_N = torch.full_like(index_N, place)
            replaced[place] = index_N, Cells(cells.row_N[index_N], places_N, cells.token_N[index_N])
    return replaced


def passes(cells: Cells, lengths: Sequence[int], max_tokens: int) -> Iterator[Tensor]:
    """Indices of cells of one token, by layer: what one pass over the tokens from there on computes.

    Rows of unlike lengths are passes of their own where their padding would cost more than a pass.

    Args:
        cells: The cells, by row.
        lengths: The number of tokens of each row, in descending order.
        max_tokens: The most cells × tokens in a pass. The layers of one row and token are never separated.
    """
    for token in cells.token_N.unique().tolist():
        index_N = (cells.token_N == token).nonzero()[:, 0]
        rows, counts = cells.row_N[index_N].unique_consecutive(return_counts=True)
        widths = [lengths[row] - token for row in rows.tolist()]
        for part_N in index_N.split([*_sizes(widths, counts.tolist(), max_tokens)]):
            yield part_N[cells.place_N[part_N].argsort(stable=True)]


def _sizes(widths: Sequence[int], counts: Sequence[int], max_tokens: int) -> Iterator[int]:
    """The numbers of cells of the passes over one token, from each row's tokens left, descending, and cells."""
    size = width = padding = 0
    for left, count in zip(widths, counts, strict=True):
        padding += count * (width - left) if size else 0
        if size and (padding > PASS_TOKENS or (size + count) * width > max_tokens):
            yield size
            size = padding = 0
        if not size:
            width = left
        size += count
    yield size


def most_shared(cells: Cells, lengths: Sequence[int], layers: int) -> Tensor:
    """The index of one cell of each row: where a pass reuses much and computes much, an error of reuse shows.

    Args:
        cells: The cells.
        lengths: The number of tokens of each row.
        layers: The number of chosen layers.

    Returns:
        The indices, the cell that shares most first.
    """
    left_N = torch.tensor(lengths)[cells.row_N] - cells.token_N
    shared_N = cells.token_N * left_N * (layers - cells.place_N)
    found: dict[int, int] = {}
    for index in shared_N.argsort(descending=True, stable=True).tolist():
        found.setdefault(int(cells.row_N[index]), index)
    return torch.tensor([*found.values()])
