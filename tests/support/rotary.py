"""Tiny models of every architecture of transformers whose rotary frequencies can depend on the width of a batch.

They are found by walking transformers' own registries: every causal language model whose config has rotary
parameters, with every type of its registry of frequencies whose frequencies change with the width.
"""

from __future__ import annotations

from typing import Any

import torch
from architectures import CONFIGS
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# The width from which frequencies change, and the most tokens.
SWITCH, POSITIONS = 16, 64
# Sizes under the names that most configs have.
SMALL = {
    **CONFIGS["llama"],
    "moe_intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "head_dim": 8,
}
MOST_PARAMETERS = 3_000_000


def parameters_of(rope_type: str, pairs: int) -> dict[str, Any]:
    """Parameters of a rotary type, with every name that a type of transformers asks for."""
    return {
        "rope_type": rope_type,
        "rope_theta": 10_000.0,
        "factor": POSITIONS / SWITCH,
        "original_max_position_embeddings": SWITCH,
        "short_factor": [1.0] * pairs,
        "long_factor": [4.0] * pairs,
        "short_mscale": 1.0,
        "long_mscale": 1.5,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "llama_4_scaling_beta": 0.1,
    }


def types_that_depend_on_width() -> list[str]:
    """The types of transformers' registry whose frequencies differ below and above the switch."""
    found = []
    for rope_type, function in ROPE_INIT_FUNCTIONS.items():
        settings = {**CONFIGS["llama"], "max_position_embeddings": SWITCH}
        config = LlamaConfig(**settings, rope_parameters=parameters_of(rope_type, 4))
        short, long = (function(config, "cpu", seq_len=width)[0] for width in (SWITCH, POSITIONS))
        if not torch.equal(short, long):
            found.append(rope_type)
    return found


def rotary_model_types() -> list[str]:
    """The causal language models of transformers whose config has rotary parameters of its own."""
    found = []
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[model_type]()
            is_text = config.get_text_config() is config
        except Exception:  # it needs the configs of its parts
            continue
        if is_text and getattr(config, "rope_parameters", None):
            found.append(model_type)
    return found


def rotary_model(model_type: str, rope_type: str) -> PreTrainedModel | None:
    """A tiny model with a rotary type, in eval mode; None where its config needs other sizes to be small."""
    torch.manual_seed(0)
    try:
        plain = _on_meta(model_type)
        rotary = [module for module in plain.modules() if "rope_type" in vars(module)]
        if not rotary or sum(parameter.numel() for parameter in plain.parameters()) > MOST_PARAMETERS:
            return None
        parameters: Any = _for_layer_types(rotary[0], rope_type)
        positions = SWITCH if rope_type == "dynamic" else POSITIONS
        settings = _settings(model_type, max_position_embeddings=positions, rope_parameters=parameters)
        config = CONFIG_MAPPING[model_type](**settings)
        # Of the older spelling.
        if "original_max_position_embeddings" in vars(config):
            config.original_max_position_embeddings = SWITCH
        model = AutoModelForCausalLM.from_config(config).eval()
        model(input_ids=torch.ones(1, SWITCH, dtype=torch.int64), use_cache=False)
    except Exception:  # sizes of a kind of their own
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model


def _for_layer_types(rotary: nn.Module, rope_type: str) -> dict[str, Any]:
    buffers = dict(rotary.named_buffers())
    if isinstance(rotary.rope_type, dict):
        return {
            each: parameters_of(rope_type, len(buffers[f"{each}_inv_freq"]))
            for each in rotary.rope_type
            if f"{each}_inv_freq" in buffers
        }
    return parameters_of(rope_type, len(buffers["inv_freq"]))


def _on_meta(model_type: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**_settings(model_type)))


def _settings(model_type: str, **others: Any) -> dict[str, Any]:
    default = CONFIG_MAPPING[model_type]()
    settings = {name: value for name, value in {**SMALL, **others}.items() if hasattr(default, name)}
    if layer_types := getattr(default, "layer_types", None):
        settings["layer_types"] = [layer_types[0], layer_types[-1]]
    return settings
