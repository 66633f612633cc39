"""Batches of rows of like length, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


def bucket_by_length(
    lengths: Sequence[int], *, max_rows: int, max_padded_tokens: int | None = None
) -> list[list[int]]:
    """Sorts rows by length and cuts them into batches, the longest first.

    Sorting keeps padding small, and the batch that needs the most memory comes first, where its failing costs
    least. The same lengths always give the same batches.

    Args:
        lengths: Tokens of each row.
        max_rows: Rows a batch may have.
        max_padded_tokens: Rows × longest row a batch may have; no such bound where None. A row longer than
            this is a batch of its own.
    """
    batches: list[list[int]] = []
    width = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rows = len(batches[-1]) + 1 if batches else max_rows + 1
        if rows > max_rows or (max_padded_tokens is not None and rows * width > max_padded_tokens):
            batches.append([])
            width = lengths[row]
        batches[-1].append(row)
    return batches


class RankSampler(DistributedSampler[int]):
    """Gives each process its share of the batches: every `world_size`-th, from its rank on.

    Nothing is repeated or left out, and a process may get nothing. A Trainer replaces any other sampler than a
    `DistributedSampler` by its own, which would share out the shares once more.

    Args:
        batches: All batches, the same in every process; the samples are their indices.
        rank: Which process this is.
        world_size: How many there are.
    """

    def __init__(self, batches: Sequence[object], *, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(cast(Dataset[int], batches), num_replicas=world_size, rank=rank, shuffle=False)
        self.share = range(rank, len(batches), world_size)

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[int]:
        return iter(self.share)
