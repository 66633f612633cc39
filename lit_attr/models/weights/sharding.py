"""A model whose weights several processes hold in parts, each block gathered when one of them needs it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from lit_attr.errors import ArgumentError, SharedModelError, UserError, one_line
from lit_attr.models.loading import adapter_base, gguf_place, load_model, not_loaded
from lit_attr.models.location import decoder_stack
from lit_attr.models.selftest import short_input_BT
from lit_attr.models.weights.mapped import copy_mapped_weights

# The rule of transformers' plans for a module whose weights are gathered for each use and freed after it.
FREED = "free_full_weight"
# The parameter of glibc's mallopt (malloc.h) for the size from which each piece of memory is mapped by itself.
M_MMAP_THRESHOLD = -3
RETURNED_BYTES = 2**17


def load_sharded_model(
    model_name: str,
    processes: int,
    device: torch.device,
    *,
    gguf_file: str | None = None,
    quantization: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Loads a model of which each process keeps a part of every weight (FSDP2); none ever has the whole.

    Args:
        model_name: Hub name or local folder of a model. All processes have to load it, in a process group.
        processes: How many there are.
        device: This process's device; its index is the process's number on its machine.
        gguf_file: Refused.
        quantization: Refused.
        device_map: Refused.
        revision: As of `load_model`.
        trust_remote_code: As of `load_model`.
        options: Other options of `load_model`.

    Raises:
        UserError: The model cannot be loaded, or not in parts, or not on this device.
    """
    accelerator = torch.accelerator.current_accelerator()
    available = accelerator.type if accelerator is not None else "cpu"
    if device.type != available:
        what = f"transformers shares a model on {available} here, not on {device.type}"
        raise UserError(f"trainer.accelerator: {what}; leave it out")
    refused = {"quantization": quantization, "device_map": device_map}
    for name, value in refused.items():
        if value is not None:
            raise ArgumentError(name, "a model that processes share has no such setting; leave it out")
    if gguf_place(model_name, gguf_file)[1] is not None:
        raise ArgumentError(
            "model_name", "a GGUF file can only be loaded whole, and processes share the model; give safetensors"
        )
    if adapter_base(model_name, revision) is not None:
        raise ArgumentError(
            "model_name",
            f"{model_name} is an adapter, and processes share the model; merge it into its base model",
        )
    try:
        config = AutoConfig.from_pretrained(model_name, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # loaders, and code that comes with a model, may raise anything
        raise not_loaded("model_name", "model", model_name, error) from error
    with _local_rank(device.index or 0):
        model = load_model(
            model_name,
            revision=revision,
            trust_remote_code=trust_remote_code,
            distributed_config=_distributed_config(decoder_stack(skeleton), processes),
            **options,
        )
    if device.type == "cpu" and sys.platform == "linux":
        _return_freed_memory()
        copy_mapped_weights(model)
    # FSDP2 gathers weights as what they are at the first gather: with or without gradients.
    return model.requires_grad_(False)


@contextmanager
def _local_rank(rank: int) -> Iterator[None]:
    """Sets the variable from which transformers takes a process's device; not every launcher sets it."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


def _distributed_config(blocks: str, processes: int) -> DistributedConfig:
    """How transformers shards a model, with each block a unit; `blocks` is the path of their list."""
    try:
        return DistributedConfig(fsdp_size=processes, fsdp_plan={f"{blocks}.*": FREED})
    except TypeError as error:
        reason = "processes can share a model with transformers 5.23 or newer; pip install -U transformers"
        raise ArgumentError("model_name", reason) from error


class SharedBlocks:
    """Gathers the blocks of a sharded model in one order in all processes, whatever passes each of them makes.

    FSDP2 gathers a block when a pass reaches it, and waits until all other processes reach the same block. Here,
    each process announces which block it needs next, for a forward or for a backward pass. All of them gather the
    announced block that comes first in a pass. Those that have announced another one free it and announce theirs
    again. So one process may make many passes and another none, as exact effects need it, if each of them takes
    part until all are done. All other weights, such as the embeddings, are gathered here, for good.

    Args:
        model: The model, from `load_sharded_model`. All processes have to make this object.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        block_list = model.get_submodule(decoder_stack(model))
        self._blocks = [block for block in block_list.children() if isinstance(block, FSDPModule)]
        # Modules of a block that are called by themselves, as tests of a model call them.
        self._alone: set[nn.Module] = set()
        # Announcements are numbers of the CPU, on whatever device the weights are.
        self._group = dist.new_group(backend="gloo")
        self._waiting, self._done = 2 * len(self._blocks), 2 * len(self._blocks) + 1
        for unit in units:
            # FSDP2 gathers the unit below ahead of time unless another one is named.
            unit.set_modules_to_backward_prefetch([unit])
            if unit not in self._blocks:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.set_reshard_after_backward(False, recurse=False)
        for place, block in enumerate(self._blocks):
            assert isinstance(block, nn.Module)
            block.register_forward_pre_hook(partial(self._before_forward, place), prepend=True)
            block.register_forward_hook(partial(self._before_backward, place), prepend=True)
            for part in block.modules():
                if any(True for _ in part.parameters(recurse=False)):
                    part.register_forward_pre_hook(partial(self._before_part, place))
                    part.register_forward_hook(partial(self._after_part, place), always_call=True)
        # Gathers what stays gathered, and makes the outermost module FSDP2's root.
        with torch.inference_mode(False), torch.no_grad():
            model(input_ids=short_input_BT(model), use_cache=False)

    def wait(self) -> None:
        """Takes part in the passes of others until every process waits here or has left."""
        while self._gather_first(self._waiting) < self._waiting:
            pass

    def leave(self) -> None:
        """Takes part in the passes of others until every process leaves."""
        while self._gather_first(self._done) < self._done:
            pass

    def _before_forward(self, place: int, module: nn.Module, args: Any) -> None:
        self._need(place)

    def _before_backward(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda _: self._need(2 * len(self._blocks) - 1 - place))

    def _before_part(self, place: int, module: nn.Module, args: Any) -> None:
        if any(isinstance(weight, DTensor) for weight in module.parameters(recurse=False)):
            self._need(place)
            self._alone.add(module)

    def _after_part(self, place: int, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._alone:
            self._alone.remove(module)
            self._blocks[place].reshard()

    def _need(self, announced: int) -> None:
        while self._gather_first(announced) != announced:
            pass

    @torch.inference_mode(False)
    def _gather_first(self, announced: int) -> int:
        """Announces what this process needs, and takes part in the gather of what comes first."""
        numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(self._group))]
        try:
            dist.all_gather(numbers, torch.tensor([announced]), group=self._group)
            first = min(int(number) for number in numbers)
            if first < self._waiting:
                block = self._blocks[min(first, self._waiting - 1 - first)]
                # A pass that has failed may have left it gathered.
                block.reshard()
                block.unshard()
                if first != announced:
                    block.reshard()
        except RuntimeError as error:
            # Without this gather, those that follow would be out of step with the others'.
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                what = "another process of the run has ended, and its part of the model with it"
            else:
                what = f"the weights of a block cannot be gathered ({one_line(error)})"
            raise SharedModelError(f"trainer.strategy: {what}; the same command resumes the run") from error
        return first


def _return_freed_memory() -> None:
    """Has glibc return to the system what a block frees; by default it keeps pieces of up to 32 MiB."""
    library = ctypes.CDLL(None)
    # Other C libraries have no such function.
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)
