"""Quantised weights: how bitsandbytes makes them, and the name of each kind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, get_args

from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from lit_attr.errors import ArgumentError, check_choice, is_first_time

Quantization = Literal["8bit", "4bit"]

LAYER_NAMES = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
# bitsandbytes logs the same message for each of its layers; the first of these does so at every forward pass.
REPETITIVE_LOGGERS = ("bitsandbytes.autograd._functions", "bitsandbytes.nn.modules")


def quantization_config(
    quantization: Quantization | None, llm_int8_threshold: float | None
) -> BitsAndBytesConfig | None:
    """The settings of transformers for a quantisation; None for none.

    Args:
        quantization: `8bit` (LLM.int8, Dettmers et al., 2022) or `4bit` (NF4, Dettmers et al., 2023).
        llm_int8_threshold: The size from which 8-bit layers take a feature through float16.

    Raises:
        ArgumentError: There is no such quantisation; or the threshold is negative, or given without 8 bits.
    """
    if quantization is not None:
        check_choice("quantization", quantization, get_args(Quantization))
    if llm_int8_threshold is not None and quantization != "8bit":
        raise ArgumentError("llm_int8_threshold", "it needs quantization 8bit; set that or leave it out")
    if llm_int8_threshold is not None and llm_int8_threshold < 0:
        raise ArgumentError("llm_int8_threshold", f"{llm_int8_threshold} is less than 0; give 0 or more")
    if quantization == "8bit":
        chosen = {} if llm_int8_threshold is None else {"llm_int8_threshold": float(llm_int8_threshold)}
        return BitsAndBytesConfig(load_in_8bit=True, **chosen)
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return None


def quantization_settings(model: PreTrainedModel) -> dict[str, Any]:
    """How a model is quantised, with those settings of bitsandbytes that change a number, in JSON types.

    A model whose config does not say is named by the classes of its weights, where these are no plain tensors.
    """
    if not is_quantized(model):
        # torchao and others change the weights of a model in place, which its config does not show.
        kinds = {type(each).__name__ for each in model.parameters() if hasattr(each, "__tensor_flatten__")}
        return {"quantization": ", ".join(sorted(kinds - {"DTensor"})) or None}
    config: Any = model.config.quantization_config
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    for bits, prefix in (("8bit", "llm_int8_"), ("4bit", "bnb_4bit_")):
        if settings.get(f"load_in_{bits}"):
            chosen = {name: value for name, value in settings.items() if name.startswith(prefix)}
            return {"quantization": bits, **chosen, "gradient": "through dequantised weights"}
    method = settings["quant_method"]
    return {"quantization": str(method.value if isinstance(method, Enum) else method)}


def is_quantized(model: nn.Module) -> bool:
    """Whether a model's config says that its weights are quantised."""
    # transformers sets the attribute on quantised models only.
    return bool(getattr(model, "is_quantized", False))


def check_quantization(model: PreTrainedModel) -> None:
    """Refuses a model whose config says that it is quantised, but whose layers are not.

    From then on, messages that bitsandbytes logs again and again appear once.

    Raises:
        ArgumentError: No layer of the model is quantised.
    """
    if not is_quantized(model):
        return
    for name in REPETITIVE_LOGGERS:
        logging.getLogger(name).addFilter(is_first_time)
    quantization = quantization_settings(model)["quantization"]
    layer = LAYER_NAMES.get(quantization)
    if layer is not None and not any(type(module).__name__ == layer for module in model.modules()):
        raise ArgumentError(
            "model",
            f"its config says {quantization}, but none of its layers is quantised; load it without offloading",
        )
