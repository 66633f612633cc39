"""How much memory a device has to spare."""

from __future__ import annotations

import torch

# The share of the free memory that one step works on: its sums and products take as much again.
SHARE = 0.25


def budget(device: torch.device) -> int | None:
    """How many bytes one step of a computation may work on; None where the free memory is not known.

    Args:
        device: A device. A CPU's memory is no bound: there its caches are.
    """
    if device.type == "cpu":
        return None
    memory = torch.get_device_module(device)
    try:
        free, _ = memory.mem_get_info(device)
        # What PyTorch keeps for its next tensors counts as taken.
        free += memory.memory_reserved(device) - memory.memory_allocated(device)
    except (AttributeError, RuntimeError):  # not every device's module has these functions, nor every driver
        return None
    return int(SHARE * free)
