"""Tensors from one device to another, by one copy."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_attr.models.transfer import copied, copying, packed, unpacked


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


def test_a_copy_is_begun_at_once_and_waited_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    """On CUDA; without it, on its tensors without data, with events that note what happens to them."""
    happened: list[str] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self, stream: object) -> None:
            happened.append("recorded")

        def synchronize(self) -> None:
            happened.append("waited")

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            output = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten._to_copy:
                happened.append(f"copied without blocking: {kwargs['non_blocking']}")
            return output

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode():
        tensors = [torch.empty(2, 3, device="cuda"), torch.empty(4, dtype=torch.bool, device="cuda")]
        with Copies():
            wait = copying(tensors)
            assert happened == ["copied without blocking: True", "recorded"]
            found = wait()
    assert happened[2:] == ["waited"]
    assert [(each.dtype, each.shape, each.device.type) for each in found] == [
        (torch.float32, (2, 3), "cpu"),
        (torch.bool, (4,), "cpu"),
    ]


def test_what_is_on_the_cpu_needs_no_waiting():
    tensors = [torch.arange(3), torch.randn(2, 2)]
    assert all(found is given for found, given in zip(copying(tensors)(), tensors, strict=True))
