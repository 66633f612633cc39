"""Models and tokenizers from the hub, a folder, or the package itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lit_attr.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Quantization = Literal["8bit", "4bit"]

DEMO_MODEL = str(Path(__file__).parent / "assets" / "demo_model")


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: Dtype = "float32",
    quantization: Quantization | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Loads a causal language model in eval mode.

    Args:
        name: Hub name or local folder.
        revision: Branch, tag or commit on the hub.
        dtype: Of the weights; `auto` takes the checkpoint's own.
        quantization: `8bit` (LLM.int8, Dettmers et al., 2022) or `4bit` (NF4, Dettmers et al., 2023), by
            bitsandbytes.
        device_map: As transformers takes it, such as `auto`, for a model spread over devices.
        attn_implementation: As transformers takes it, such as `eager` or `sdpa`.
        trust_remote_code: Whether code that comes with the model may run.
        device: Where a quantised model goes, since it cannot be moved once loaded.

    Raises:
        UserError: There is no such model, or it cannot be loaded so.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
    }
    if quantization is not None:
        options["quantization_config"] = _quantization_config(quantization)
        options["device_map"] = device_map or {"": device or torch.device("cpu")}
    if revision is not None and Path(name).is_dir():
        raise UserError(f"model.revision: {revision!r} is for models on the hub; {name} is a folder")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, output_loading_info=True, **{key: value for key, value in options.items() if value is not None}
        )
    except Exception as error:  # whatever a loader or the code that comes with a model may raise
        raise UserError(_not_loaded("model.model_name", "model", name, error)) from error
    model, loading = loaded
    absent = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if absent:
        raise UserError(
            f"model.model_name: {name} lacks {len(absent)} weights of its config, such as {absent[0]}; they "
            "would be random; get a whole checkpoint"
        )
    model.eval()
    return cast(PreTrainedModel, model)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, setting: str = "data.tokenizer"
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by hub name or from a local folder.

    Args:
        name: Hub name or local folder.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the tokenizer may run.
        setting: What to name where it cannot be loaded: the setting that the name came from.

    Raises:
        UserError: There is no such tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a loader or the code that comes with a tokenizer may raise
        raise UserError(_not_loaded(setting, "tokenizer", name, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{setting}: the tokenizer of {name} holds no vocabulary; name one by data.tokenizer")
    return cast(PreTrainedTokenizerBase, tokenizer)


def is_placed(model: nn.Module) -> bool:
    """Whether the model's own loader has put it on its devices, from which it must not be moved."""
    return getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's shape and of a sample of every parameter, to know it again by."""
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, parameter in model.named_parameters():
        sample = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)]
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if not parameter.is_meta:
            digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def _quantization_config(quantization: Quantization) -> BitsAndBytesConfig:
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def _not_loaded(setting: str, what: str, name: str, error: Exception) -> str:
    if Path(name).is_dir():
        mend = f"check that the folder is what save_pretrained wrote, and the settings beside {setting}"
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{setting}: there is no folder {name}; check the path"
    else:
        mend = "check the name and the network, or give a local folder"
    reason = " ".join((str(error) or type(error).__name__).split())[:300]
    return f"{setting}: no {what} {name!r} could be loaded ({reason}); {mend}"
