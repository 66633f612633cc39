"""Batches of rows of like length, shared out among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

# Of a batch's tokens under a token bound, how much may be padding: a share of them, or a few in a small batch.
MOST_PADDING = 0.02
FEW_TOKENS = 8


def bucket_by_length(
    lengths: Sequence[int], *, max_rows: int | None = None, max_padded_tokens: int | None = None
) -> list[list[int]]:
    """Sorts rows by length and cuts them into batches, the longest first.

    Sorting keeps padding small, and the batch that needs the most memory comes first, where its failing costs
    least. The same lengths always give the same batches.

    Args:
        lengths: Tokens of each row.
        max_rows: Rows a batch may have; no such bound where None.
        max_padded_tokens: Rows × longest row a batch may have; no such bound where None. A row longer than
            this is a batch of its own. Under this bound, a batch also ends where shorter rows would be padded
            by more than 2% of its tokens.
    """
    batches: list[list[int]] = []
    width = tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rows = len(batches[-1]) + 1 if batches else 0
        padded = rows * width
        full = max_rows is not None and rows > max_rows
        if max_padded_tokens is not None:
            padding = padded - tokens - lengths[row]
            full |= padded > max_padded_tokens or padding > max(MOST_PADDING * padded, FEW_TOKENS)
        if full or not batches:
            batches.append([])
            width, tokens = lengths[row], 0
        batches[-1].append(row)
        tokens += lengths[row]
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
