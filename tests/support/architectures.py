"""The architectures that lit-attr is tested on, as tiny models made from their config classes.

`STREAM_BEFORE_MLP` locates the residual stream before the MLP writes, from each architecture's source code. The
MLP's write is the block's output minus that stream, whichever modules compute it.
"""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Fact

VOCABULARY = 67

_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GPT2_LIKE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_MOE = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}
_GRANITE = {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "attention_multiplier": 0.1}

CONFIGS = {
    "gpt2": _GPT2_LIKE,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "gptj": {**_GPT2_LIKE, "rotary_dim": 4},
    "gpt_neox": _LLAMA_LIKE,
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_LLAMA_LIKE, "alibi": False},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "mixtral": {**_LLAMA_LIKE, "num_local_experts": 4},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "qwen2_moe": {**_LLAMA_LIKE, **_MOE, "num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma2": {**_LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 4},
    "phi": {**_LLAMA_LIKE, "num_key_value_heads": 4},
    "phi3": _LLAMA_LIKE,
    "olmo2": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "starcoder2": _LLAMA_LIKE,
    "granite": {**_LLAMA_LIKE, **_GRANITE, "logits_scaling": 8.0},
    "cohere": {**_LLAMA_LIKE, "logit_scale": 0.25},
    "codegen": {**_GPT2_LIKE, "rotary_dim": 4},
    "gpt_bigcode": _GPT2_LIKE,
    "xglm": {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "num_layers": 2,
        "attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "biogpt": _LLAMA_LIKE,
}

# The module of the block whose input is the residual stream before the MLP writes. In brackets, for parallel
# attention and MLP: the attention module, whose output is the other write.
STREAM_BEFORE_MLP = {
    "gpt2": "ln_2",
    "gpt_neo": "ln_2",
    "gptj": ["attn"],
    "gpt_neox": ["attention"],
    "opt": "final_layer_norm",
    "bloom": "post_attention_layernorm",
    "falcon": ["self_attention"],
    "mpt": "norm_2",
    "llama": "post_attention_layernorm",
    "mistral": "post_attention_layernorm",
    "mixtral": "post_attention_layernorm",
    "qwen2": "post_attention_layernorm",
    "qwen3": "post_attention_layernorm",
    "qwen2_moe": "post_attention_layernorm",
    "gemma": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm",
    "gemma3_text": "pre_feedforward_layernorm",
    "phi": ["self_attn"],
    "phi3": "post_attention_layernorm",
    "olmo2": "mlp",
    "stablelm": "post_attention_layernorm",
    "starcoder2": "post_attention_layernorm",
    "granite": "post_attention_layernorm",
    "cohere": ["self_attn"],
    "codegen": ["attn"],
    "gpt_bigcode": "ln_2",
    "xglm": "final_layer_norm",
    "biogpt": "final_layer_norm",
}


def tiny_model(model_type: str, dtype: torch.dtype = torch.float32, **settings) -> PreTrainedModel:
    """A model of two layers of width 32 in eval mode, with weights large enough for scores of order one."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**{**CONFIGS.get(model_type, _LLAMA_LIKE), **settings})
    if dtype == torch.float64:
        # The grouped kernel of the experts does not support float64.
        config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model


def contrast_of(token_ids: tuple[int, ...], true_token_id: int = 3, false_token_id: int = 5) -> Contrast:
    """A contrast of token ids, for a model without a tokenizer."""
    fact = Fact(0, 0, "a b", "a", 0, " true", " false", "")
    names = ("a",) * len(token_ids), ("last",) * len(token_ids)
    return Contrast(fact, 0, token_ids, *names, (0, 1), true_token_id, false_token_id, "true", "false")


def random_contrasts(lengths: tuple[int, ...]) -> list[Contrast]:
    """A contrast of random tokens for each length."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(VOCABULARY, (length + 2,), generator=generator).tolist() for length in lengths]
    return [contrast_of(tuple(ids[2:]), ids[0], (ids[0] + 1 + ids[1] % 60) % VOCABULARY) for ids in drawn]
