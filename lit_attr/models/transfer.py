"""Tensors from one device to another, by one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def copied(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copies tensors that are on one device to another as one piece of memory.

    To copy results to the CPU is to wait for the device, so it is done once for all of them.

    Args:
        tensors: Tensors of any formats and shapes.
        device: Where they go. Tensors that are there already are returned as they are.
    """
    if not tensors or tensors[0].device == torch.device(device):
        return [*tensors]
    return unpacked(packed(tensors).to(device), tensors)


def copying(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begins to copy tensors that are on one device to the CPU as one piece of memory.

    On CUDA the host goes on while the device computes the tensors and copies them; elsewhere the copy is complete
    when this function returns.

    Args:
        tensors: Tensors of any formats and shapes.

    Returns:
        A function that waits for the copies and returns them. Any thread may call it.
    """
    if not tensors or tensors[0].device.type != "cuda":
        copies = copied(tensors, "cpu")
        return lambda: copies
    # A copy that does not block goes to pinned memory, whose content is undefined until the event has occurred.
    bytes_ = packed(tensors).to("cpu", non_blocking=True)
    event = torch.cuda.Event(blocking=True)
    event.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> list[Tensor]:
        event.synchronize()
        return unpacked(bytes_, tensors)

    return wait


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of tensors, those of the widest numbers first: each has to begin at a multiple of its size."""
    return torch.cat([tensors[place].contiguous().flatten().view(torch.uint8) for place in _by_width(tensors)])


def unpacked(bytes_: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors whose bytes :func:`packed` has joined, of the same formats and shapes as those."""
    places = _by_width(like)
    pieces = bytes_.split([like[place].numel() * like[place].element_size() for place in places])
    found = dict(zip(places, pieces, strict=True))
    return [found[place].view(tensor.dtype).reshape(tensor.shape) for place, tensor in enumerate(like)]


def _by_width(tensors: Sequence[Tensor]) -> list[int]:
    return sorted(range(len(tensors)), key=lambda place: -tensors[place].element_size())
