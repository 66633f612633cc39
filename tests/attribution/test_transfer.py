"""Tensors from one device to another, by one copy."""

from __future__ import annotations

import torch

from lit_attr.attribution.transfer import copied, packed, unpacked


def test_tensors_of_a_device_stay_what_they_are():
    tensors = [torch.arange(3), torch.randn(2, 2)]
    assert all(found is given for found, given in zip(copied(tensors, "cpu"), tensors, strict=True))
    assert copied([], "cpu") == []


def test_formats_and_shapes_arrive():
    """Numbers of 1, 2, 4 and 8 bytes, whatever their order, an empty tensor and a strided one."""
    tensors = [
        torch.tensor([True, False, True]),
        torch.randn(5),
        torch.randn(2, 3, dtype=torch.bfloat16),
        torch.arange(4),
        torch.zeros(0, 3),
        torch.randn(4, 3, dtype=torch.float64).T,
        torch.tensor(2.5),
    ]
    # The device `meta` has no numbers, so that the way there shows formats and shapes alone.
    for found, given in zip(copied(tensors, "meta"), tensors, strict=True):
        assert (found.dtype, found.shape, found.device.type) == (given.dtype, given.shape, "meta")
    for found, given in zip(unpacked(packed(tensors), tensors), tensors, strict=True):
        assert torch.equal(found, given) and found.dtype == given.dtype
