"""Weights that are views of a mapped file, copied into memory of the process's own."""

from __future__ import annotations

import ctypes
import mmap
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def copy_mapped_weights(model: nn.Module) -> None:
    """Copies the weights that are views of a mapped file, and releases the file's pages.

    The pages that a process has mapped count as its memory, and where the page cache holds large folios, the
    kernel maps whole folios. A process that uses a part of every weight would have most of the file in memory.

    Args:
        model: A model on the CPU, on Linux. Its parameters may be parts (`DTensor`).
    """
    mapped = _mapped_ranges()
    views: defaultdict[range, list[nn.Parameter]] = defaultdict(list)
    for weight in model.parameters():
        storage = _local(weight).untyped_storage()
        if any(storage.data_ptr() in each for each in mapped):
            views[range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())].append(weight)
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for addresses, weights in views.items():
        for weight in weights:
            copies[weight] = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        # Only now: what has been written to a weight since it was loaded is not in the file.
        _release(addresses)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if weight in copies:
                module.register_parameter(name, copies[weight])


def _local(weight: Tensor) -> Tensor:
    """The part of a weight that this process has."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _mapped_ranges() -> list[range]:
    """The addresses at which this process has mapped files."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            start, end = (int(each, 16) for each in addresses.split("-"))
            found.append(range(start, end))
    return found


def _release(addresses: range) -> None:
    """Drops the whole pages of a mapped file from the process's memory; a later read takes them from the file."""
    first, last = -(-addresses.start // mmap.PAGESIZE), addresses.stop // mmap.PAGESIZE
    if first < last:
        start, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
        # Where it fails, the process keeps more memory and nothing else changes.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
