"""The memory that a step of a computation may take."""

from __future__ import annotations

import pytest
import torch

from lit_attr.models.memory import SHARE, budget


def test_a_cpu_has_no_budget():
    assert budget(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_has_a_share_of_its_free_memory():
    device = torch.device("cuda", 0)
    before = budget(device)
    assert before is not None and 0 < before <= SHARE * torch.cuda.mem_get_info(device)[1]
    # Memory that PyTorch has had and keeps is free.
    filled = torch.empty(2**28, dtype=torch.uint8, device=device)
    held = budget(device)
    del filled
    after = budget(device)
    assert held is not None and after is not None and held < after
