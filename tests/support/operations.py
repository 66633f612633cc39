"""Operations and reads of data of one batch, counted on an accelerator that need not be there.

Under FakeTensorMode tensors have shapes and devices but no data. `python tests/support/operations.py 4 12 48`
counts for GPT-2 and Llama of these depths, beside the same model's forward and backward pass alone. A device is
registered for the whole process, so tests run this file as a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from architectures import random_contrasts, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from lit_attr.attribution import passes
from lit_attr.attribution.catalogue import RuleName
from lit_attr.attribution.results import AttributionBatch
from lit_attr.facts.batches import ContrastBatch, collate_contrasts
from lit_attr.models.nonlinearities.norms import Norm
from lit_attr.module import AttributionModule

aten = torch.ops.aten
# They launch nothing: views that are not marked as such, and memory that is not filled.
FREE = {
    aten.detach,
    aten._unsafe_view,
    aten.lift_fresh,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
}
# Their result, or its shape, is known to Python only once the device has computed everything before.
READS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.bincount,
}
COPIES = {aten._to_copy, aten.copy_}
GIBIBYTE = 2**30
RULES: tuple[RuleName, ...] = ("gradient", "frozen-norm", "linearised", "norm-secant")
# The tokens of each row.
SHAPES = ((3, 6), (40, 33, 12, 9) * 16)


class Counts(NamedTuple):
    """What one batch takes.

    Attributes:
        operations: Operations that launch something on the accelerator.
        reads: Reads of the accelerator's data, those that copy it included.
        waits: Copies to the accelerator for which the host waits.
    """

    operations: int
    reads: int
    waits: int


class OperationCounter(TorchDispatchMode):
    """Counts operations, those of the backward pass included.

    Attributes:
        operations: On an accelerator, by name.
        reads: Of an accelerator's data, by name.
        waits: Copies to an accelerator for which the host waits, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    @property
    def counts(self) -> Counts:
        return Counts(self.operations.total(), self.reads.total(), self.waits.total())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        output = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        packet, name = func.overloadpacket, str(func)
        is_far = any(each.device.type != "cpu" for each in (*given, *made))
        if not is_far or func.is_view or func.namespace != "aten" or packet in FREE:
            return output
        if packet in COPIES and made[0].device.type == "cpu":
            self.reads[name] += 1
        elif packet in COPIES and given[-1].device.type == "cpu":
            # Without `non_blocking` the host waits until the device has come to it.
            self.waits[name] += not (kwargs or {}).get("non_blocking", False)
        elif packet in READS or (packet in (aten.index, aten.index_put, aten.index_put_) and _is_mask(args[1])):
            self.reads[name] += 1
        else:
            self.operations[name] += 1
        return output


def _is_mask(indices: Any) -> bool:
    return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)


class _FakeModule:
    """What torch asks of a device's module, and the memory that the device has."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 64 * GIBIBYTE, 80 * GIBIBYTE

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def memory_allocated(self, device: Any = None) -> int:
        return 0


def fake_accelerator() -> torch.device:
    """A device for tensors without data: CUDA; on a machine without it, another one in its place.

    FakeTensorMode alone makes CUDA tensors anywhere, but autograd asks the device for its contexts.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("fake", backend_module=_FakeModule())
    return torch.device("fake", 0)


@contextmanager
def without_data() -> Iterator[None]:
    """Makes tensors without data. Each read of data is an error."""
    before = torch._C._only_lift_cpu_tensors()
    # What Python makes from a list goes to the device by a copy, as a tensor with data does.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with FakeTensorMode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def send(module: nn.Module, device: torch.device) -> None:
    """Replaces the weights of a model by ones without data; call it within `without_data`."""

    def empty(value: Tensor) -> Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device=device)

    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(empty(weight), requires_grad=False)
        part._buffers.update({name: empty(each) for name, each in part._buffers.items() if each is not None})
        for name, value in vars(part).items():
            # Rotary frequencies that a model keeps beside its buffers.
            if isinstance(value, Tensor):
                vars(part)[name] = empty(value)


def counted(call: Callable[[], Any]) -> OperationCounter:
    """The operations of a call."""
    with OperationCounter() as counter:
        call()
    return counter


def forward_and_backward(model: PreTrainedModel, modules: tuple[nn.Module, ...], batch: ContrastBatch) -> None:
    """A model's passes alone: the logits of all tokens, and the gradients at the modules' outputs."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        outputs.append(output if output.requires_grad else output.detach().requires_grad_())
        return outputs[-1]

    handles = [module.register_forward_hook(keep) for module in modules]
    logits_BTV = model(input_ids=batch.token_ids_BT, use_cache=False).logits
    for handle in handles:
        handle.remove()
    row_B = torch.arange(len(batch.last_B), device=logits_BTV.device)
    true_B = logits_BTV[row_B, batch.last_B, batch.true_token_ids_B]
    false_B = logits_BTV[row_B, batch.last_B, batch.false_token_ids_B]
    torch.autograd.grad((true_B - false_B).sum(), outputs)


def sent_rule(rule: Any, device: torch.device) -> Any:
    """A rule whose own tensors are on the device, as if it had been prepared there."""

    def sent(norm: Norm) -> Norm:
        return norm._replace(weight_H=torch.empty(norm.weight_H.shape, device=device))

    if rule.name == "norm-secant":
        readers = (
            each._replace(norm=sent(each.norm), factors_L=torch.empty(each.factors_L.shape, dtype=torch.float64))
            for each in rule.readers
        )
        return replace(rule, readers=tuple(readers))
    if rule.name == "linearised":
        return replace(rule, norms=sent_rule(rule.norms, device))
    if rule.name == "frozen-norm":
        return replace(rule, norms={module: sent(norm) for module, norm in rule.norms.items()})
    return rule


def _arrive(scored: AttributionBatch) -> AttributionBatch:
    return scored.begin_copy()()


class Figures(NamedTuple):
    """What one batch takes.

    Attributes:
        model: The type of the model.
        layers: Its depth.
        rule: The rule.
        rows: The rows of the batch.
        passes: One forward and one backward pass alone.
        step: `predict_step`.
        copy: The copy of its results to the CPU.
    """

    model: str
    layers: int
    rule: str
    rows: int
    passes: Counts
    step: Counts
    copy: Counts


def count_batches(model_type: str, layers: int, rule: RuleName, device: torch.device) -> Iterator[Figures]:
    """Counts a batch of each of `SHAPES`."""
    depth = "n_layer" if model_type == "gpt2" else "num_hidden_layers"
    module = AttributionModule(model=tiny_model(model_type, **{depth: layers}), rule=rule)
    module.configure_model()
    model, location = module.language_model, module.location
    assert model is not None and location is not None
    model.requires_grad_(False)
    # By their type, weights without data are no parameters.
    passes._is_plain = lambda unembedding: type(unembedding) is nn.Linear
    contrasts = [random_contrasts(lengths) for lengths in SHAPES]
    with without_data():
        send(model, device)
        module._scoring = module._scoring._replace(rule=sent_rule(module._scoring.rule, device))
        for batch in map(collate_contrasts, contrasts):
            alone = counted(partial(forward_and_backward, model, location.modules, batch.to(device))).counts
            with OperationCounter() as step:
                scored = module.predict_step(batch, 0)
            copy = counted(partial(_arrive, scored)).counts
            yield Figures(model_type, layers, rule, len(batch.contrasts), alone, step.counts, copy)


def main(arguments: list[str]) -> None:
    device = fake_accelerator()
    for model_type in ("gpt2", "llama"):
        for layers in map(int, arguments):
            for rule in RULES:
                for figures in count_batches(model_type, layers, rule, device):
                    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
