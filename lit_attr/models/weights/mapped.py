"""Weights that are views of a mapped file, copied into memory of the process's own."""

from __future__ import annotations

import ctypes
import mmap
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# Of Linux's madvise (mman.h): the pages are no longer needed, and are read from the file if they are again.
MADV_DONTNEED = 4


@torch.no_grad()
def copy_mapped_weights(model: nn.Module) -> None:
    """Copies the weights that are views of a mapped file, and lets go of the file's pages.

    The pages that a process has mapped count as its memory, and where the system's cache has a file in large
    pieces, the system maps whole pieces. A process with a part of every weight would have most of the file mapped.

    Args:
        model: A model on the CPU, on Linux. Its parameters may be parts (`DTensor`).
    """
    mapped = _mapped_ranges()
    views: defaultdict[int, list[tuple[int, nn.Parameter]]] = defaultdict(list)
    for weight in model.parameters():
        local = _local(weight)
        start = local.untyped_storage().data_ptr()
        if any(start in each for each in mapped):
            views[start].append((local.data_ptr(), weight))
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for start, weights in views.items():
        # In the order of the file, so that all pages before the end of a copied weight can go.
        for address, weight in sorted(weights, key=lambda each: each[0]):
            copies[weight] = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            _let_go(start, address + _local(weight).nbytes)
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


def _let_go(start: int, end: int) -> None:
    """Unmaps the whole pages of a mapped file from one address to another. Nothing has been written to them."""
    first, last = -(-start // mmap.PAGESIZE), end // mmap.PAGESIZE
    if first < last:
        address, size = first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), MADV_DONTNEED)
