"""Vision-language models whose vision tower is as deep as their text model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import CONFIGS, VOCABULARY, random_contrasts
from peft import LoraConfig, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlavaConfig,
    PreTrainedModel,
)

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.facts.batches import collate_contrasts
from lit_attr.models.location import locate

_TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
}
_TEXT = {**CONFIGS["llama"], "head_dim": 8}
_QWEN = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
_SECTIONS = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}


def tiny(model_type: str, text: dict[str, Any], vision: dict[str, Any], **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](text_config=text, vision_config=vision, **settings)
    return AutoModelForImageTextToText.from_config(config).eval()


def llava() -> PreTrainedModel:
    text = CONFIG_MAPPING["llama"](**CONFIGS["llama"])
    return AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=CLIPVisionConfig(**_TOWER), text_config=text, image_token_index=VOCABULARY - 1)
    ).eval()


MODELS = {
    "llava": llava,
    "gemma3": lambda: tiny("gemma3", {**_TEXT, "sliding_window": 4}, _TOWER, mm_tokens_per_image=4),
    "internvl": lambda: tiny(
        "internvl",
        {**_TEXT, "model_type": "qwen2"},
        {**_TOWER, "image_size": [16, 16], "patch_size": [8, 8]},
        image_token_id=VOCABULARY - 1,
    ),
    "qwen2_vl": lambda: tiny("qwen2_vl", {**_TEXT, "rope_parameters": _SECTIONS}, _QWEN),
    "qwen2_5_vl": lambda: tiny(
        "qwen2_5_vl",
        {**_TEXT, "rope_parameters": _SECTIONS},
        {**_TOWER, "depth": 2, "num_heads": 4, "out_hidden_size": 32},
    ),
    "mistral3": lambda: tiny("mistral3", {**_TEXT, "model_type": "mistral"}, {**_TOWER, "model_type": "pixtral"}),
    "idefics3": lambda: tiny("idefics3", {**_TEXT, "model_type": "llama"}, _TOWER, image_token_id=VOCABULARY - 1),
    "smolvlm": lambda: tiny("smolvlm", {**_TEXT, "model_type": "llama"}, _TOWER, image_token_id=VOCABULARY - 1),
}


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_text_model_is_located(model_type: str, wrapped: bool):
    model: Any = MODELS[model_type]()
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    assert sum(len(each) == model.config.get_text_config().num_hidden_layers for each in lists) >= 2
    text = model.get_decoder().layers
    if wrapped:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    for component in ("mlp", "attention"):
        location = locate(model, component=component)
        assert all(module in [*block.modules()] for module, block in zip(location.modules, text, strict=True))
    location = locate(model, component="block")
    assert location.modules == tuple(text)
    scored = attribute_batch(model, location, collate_contrasts(random_contrasts((3, 5))))
    assert scored.scores_sum_BLT.any()
