"""What identifies a model: its weights and every setting that changes a number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from lit_attr.errors import ArgumentError, one_line
from lit_attr.models.hooks import uncompiled
from lit_attr.models.loading import gguf_place
from lit_attr.models.weights.quantization import quantization_settings

# The attributes of a PEFT layer that change its output, besides its weights.
ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
# How many numbers of each parameter the fingerprint samples.
SAMPLED = 64
# Bytes of a file that are in memory at a time.
BLOCK = 2**20


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model in its present state that changes a number, in JSON types."""
    config = model.config
    adapters: Mapping[str, Any] = getattr(model, "peft_config", {})
    return {
        "commit": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "weights": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        **quantization_settings(model),
        "adapters": {name: str(adapter.peft_type.value) for name, adapter in adapters.items()},
        "attn_implementation": config._attn_implementation,
    }


def gguf_digest(model_name: str, gguf_file: str | None, revision: str | None = None) -> str | None:
    """A hash of the content of a model's GGUF file; None where the model is not in one.

    Args:
        model_name: Hub name, local folder or GGUF file, as of `load_model`.
        gguf_file: The name of a GGUF file in that folder or repository.
        revision: Branch, tag or commit on the hub.
    """
    place, gguf_file = gguf_place(model_name, gguf_file)
    if gguf_file is None:
        return None
    digest = hashlib.sha256()
    path = cached_file(place, gguf_file, revision=revision)
    assert path is not None  # it raises where there is no file
    with Path(path).open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's architecture and of a sample of every parameter.

    It does not depend on where the weights are, on a device or on disk.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    with uncompiled(model) as model:
        for path, module in model.named_modules():
            if hasattr(module, "merged_adapters"):
                digest.update(repr([getattr(module, name, None) for name in ADAPTER_STATE]).encode())
            # Reads offloaded weights from disk for as long as the block lasts.
            with align_module_device(module):
                for name, parameter in module.named_parameters(recurse=False):
                    digest.update(f"{path}.{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
                    # All processes that share a model come here, and gather one weight after another.
                    gather = getattr(parameter, "full_tensor", None)
                    whole = parameter if gather is None else gather()
                    digest.update(_sample_bytes(whole, f"{path}.{name}"))
    return digest.hexdigest()[:16]


def _sample_bytes(tensor: Tensor, name: str) -> bytes:
    """Some of a tensor's numbers; of one made of others, such as a quantised weight, some of theirs."""
    step = max(1, tensor.numel() // SAMPLED)
    try:
        return tensor.detach().flatten()[::step].to("cpu", torch.float32).numpy().tobytes()
    except Exception as error:  # quantised weights support the operations of a model, and may raise anything else
        # How torch.compile takes them apart.
        parts = getattr(tensor, "__tensor_flatten__", None)
        if parts is not None:
            inner = {each: getattr(tensor, each) for each in sorted(parts()[0])}
            return b"".join(_sample_bytes(each, f"{name}.{key}") for key, each in inner.items())
        with suppress(Exception):
            dense = tensor.dequantize()
            return dense.detach().flatten()[::step].to("cpu", torch.float32).numpy().tobytes()
        raise ArgumentError(
            "model",
            f"the numbers of its weight {name} ({type(tensor).__name__}) cannot be read ({one_line(error, 100)}), "
            "by which a run knows its model; load it in another format",
        ) from error
