"""Batches of contrasts of similar length, divided among processes.

Axes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from lit_attr.facts.contrasts import Contrast

# How much of a batch under a token bound may be padding: this share of its tokens, or a few in a small batch.
MAX_PADDING_SHARE = 0.02
MIN_PADDING_TOKENS = 8


def bucket_by_length(
    lengths: Sequence[int],
    *,
    max_rows: int | None = None,
    max_padded_tokens: int | None = None,
    width_class: Callable[[int], int] | None = None,
) -> list[list[int]]:
    """Sorts rows by length and cuts them into batches, the longest first.

    Sorting keeps padding small, and the batch that needs the most memory comes first, where running out of it
    costs the least work. The same lengths always give the same batches.

    Args:
        lengths: The number of tokens of each row.
        max_rows: The most rows in a batch; None for no such bound.
        max_padded_tokens: The most tokens in a batch, rows × longest row; None for no such bound. A row longer
            than this is a batch of its own. Under this bound, a batch also ends before a row whose padding would
            make up more than 2% of its tokens.
        width_class: The class of a length, see `ModelLimits.width_class`: only lengths of one class share a batch.
            None for a model to which all lengths are alike.

    Returns:
        The indices into `lengths` of each batch.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    bounds = cut_by_length(
        np.asarray(lengths, dtype=np.int64)[order],
        max_rows=max_rows,
        max_padded_tokens=max_padded_tokens,
        width_class=width_class,
    )
    return [order[begin:end].tolist() for begin, end in pairwise(bounds)]


def cut_by_length(
    lengths_N: NDArray[np.integer[Any]],
    *,
    max_rows: int | None = None,
    max_padded_tokens: int | None = None,
    width_class: Callable[[int], int] | None = None,
) -> list[int]:
    """Where :func:`bucket_by_length` cuts rows that are in the order of their lengths, the longest first.

    Args:
        lengths_N: The number of tokens of each row.
        max_rows: See there, as the others.
        max_padded_tokens: See there.
        width_class: See there.

    Returns:
        Where each batch begins, and after them the number of rows.
    """
    ends = np.append(np.flatnonzero(np.diff(lengths_N)) + 1, len(lengths_N)).tolist()
    bounds = [0]
    run = 0
    while bounds[-1] < len(lengths_N):
        begin = at = bounds[-1]
        width = int(lengths_N[begin])
        while ends[run] <= begin:
            run += 1
        most = len(lengths_N) if max_rows is None else max_rows
        if max_padded_tokens is not None:
            most = max(1, min(most, max_padded_tokens // width))
        # Rows as long as the first one need no padding.
        at = min(ends[run], begin + most)
        tokens = width * (at - begin)
        while at < len(lengths_N) and at - begin < most:
            length = int(lengths_N[at])
            padded = width * (at - begin + 1)
            tokens += length
            padding = padded - tokens
            if max_padded_tokens is not None and padding > max(MAX_PADDING_SHARE * padded, MIN_PADDING_TOKENS):
                break
            if width_class is not None and width_class(length) != width_class(width):
                break
            at += 1
        bounds.append(at)
    return bounds


def in_batches(
    contrasts: Sequence[Contrast],
    *,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    width_class: Callable[[int], int] | None = None,
) -> list[list[Contrast]]:
    """Cuts contrasts into batches of similar length, the longest first.

    Args:
        contrasts: The contrasts, in any order.
        max_rows: The most contrasts in a batch; None for no such bound.
        max_tokens: The most tokens in a batch with its padding, see :func:`bucket_by_length`; None for no bound.
        width_class: Which lengths may share a batch, see :func:`bucket_by_length`.
    """
    lengths = [len(contrast.token_ids) for contrast in contrasts]
    batches = bucket_by_length(lengths, max_rows=max_rows, max_padded_tokens=max_tokens, width_class=width_class)
    return [[contrasts[row] for row in rows] for rows in batches]


class RankSampler(DistributedSampler[int]):
    """Gives each process its share of the batches: every `world_size`-th, starting at its rank.

    No batch is repeated or left out, and a process may get none. A Trainer replaces every sampler that is not a
    `DistributedSampler` with one of its own, which would divide the shares again.

    Args:
        batches: All batches, the same in every process; the samples are their indices.
        rank: The rank of this process.
        world_size: The number of processes.
    """

    def __init__(self, batches: Sequence[object], *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset[int], batches), num_replicas=world_size, rank=rank, shuffle=False)
        self.share = range(rank, len(batches), world_size)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)
