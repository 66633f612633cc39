"""A language model as an object: found in another module, checked, and where its weights are."""

from __future__ import annotations

from operator import attrgetter
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_attr.errors import ArgumentError, warn_about
from lit_attr.models.weights.quantization import check_quantization, is_quantized


def find_language_model(owner: nn.Module, attribute: str | None = None) -> PreTrainedModel:
    """The one language model in a module or in one of its attributes; with PEFT's wrapper, where it has one.

    Args:
        owner: The module.
        attribute: Path of an attribute, such as `student` or `net.decoder`. The object there need not be a
            submodule.

    Raises:
        ArgumentError: There is no such attribute, or it holds no language model or several.
    """
    try:
        where = owner if attribute is None else attrgetter(attribute)(owner)
    except AttributeError as error:
        raise ArgumentError("attribute", f"{error}; check the path") from error
    found: dict[str, PreTrainedModel] = {}
    for name, module in where.named_modules() if isinstance(where, nn.Module) else ():
        inner = module.get_base_model() if hasattr(module, "active_peft_config") else module
        # Outer modules come first, and a language model contains a smaller one, without its head.
        if isinstance(inner, PreTrainedModel) and not any(
            name.startswith(f"{outer}." if outer else "") for outer in found
        ):
            found[name] = cast(PreTrainedModel, module)
    with_head = {name: model for name, model in found.items() if model.get_output_embeddings() is not None}
    if len(with_head) != 1:
        what = f"{attribute or type(owner).__name__} holds {len(with_head)} language models of transformers"
        raise ArgumentError("attribute", f"{what} ({', '.join(with_head)}), not one; name its attribute")
    return next(iter(with_head.values()))


def check_model(model: PreTrainedModel) -> None:
    """Refuses a model that is not quantised as its config says, and warns about float16.

    Raises:
        ArgumentError: The config says that the model is quantised, but none of its layers is.
    """
    check_quantization(model)
    # PEFT's wrapper has a dtype only where its base model has one.
    if getattr(model, "dtype", None) == torch.float16:
        warn_about("dtype", "gradients can underflow to 0 in float16; bfloat16 is the safer half precision")


def broken_weight(model: nn.Module) -> str | None:
    """What is wrong with a model that has weights that are not finite, and the fix."""
    for name, weight in model.named_parameters():
        # Those on disk are on the device meta, without numbers.
        if weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all():
            return f"its weight {name} is not finite, so that no score would be; get an intact checkpoint"
    return None


def is_placed(model: nn.Module) -> bool:
    """Whether the model's own loader has put it on its devices, so that nothing else may move it."""
    return getattr(model, "hf_device_map", None) is not None or is_quantized(model)


def is_spread(model: nn.Module) -> bool:
    """Whether the model is on several devices, or partly on disk."""
    devices = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(devices) > 1 or "disk" in devices
