"""Models and tokenizers from the hub, a folder, or the package itself."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.import_utils import is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from lit_attr.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Quantization = Literal["8bit", "4bit"]

DEMO_MODEL = str(Path(__file__).parents[1] / "assets" / "demo_model")

# bitsandbytes says the same of each of its layers, the first of these at every forward pass.
REPETITIVE_LOGGERS = ("bitsandbytes.autograd._functions", "bitsandbytes.nn.modules")

# What of a PEFT layer changes what it computes, besides its weights.
ADAPTER_STATE = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")

logger = logging.getLogger(__name__)
_logged: set[str] = set()


def load_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: Dtype = "float32",
    quantization: Quantization | None = None,
    llm_int8_threshold: float | None = None,
    device_map: str | dict[str, Any] | None = None,
    offload_folder: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Loads a causal language model in eval mode.

    Args:
        name: Hub name or local folder, of a model or of a PEFT adapter, which brings its base model.
        revision: Branch, tag or commit on the hub.
        dtype: Of the weights; `auto` takes the checkpoint's own.
        quantization: `8bit` (LLM.int8, Dettmers et al., 2022) or `4bit` (NF4, Dettmers et al., 2023), by
            bitsandbytes.
        llm_int8_threshold: 8-bit takes a feature that exceeds this at any token of a batch through float16 for
            all of them. With 0 it takes none, so that a row does not depend on the others. Default:
            bitsandbytes' 6.
        device_map: As transformers takes it, such as `auto`, for a model spread over devices.
        offload_folder: Where weights that `device_map` leaves on disk go, if the checkpoint cannot be read piece
            by piece; transformers says so when it is needed.
        attn_implementation: As transformers takes it, such as `eager` or `sdpa`. Default: as transformers chooses,
            but `eager` in bfloat16 on a CPU.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether weights have to be in safetensors files, which cannot hold code; otherwise pickled
            ones are read too, by torch with `weights_only`.
        device: Where the model is to be used. A quantised one goes there, since it cannot be moved once loaded.

    Raises:
        UserError: There is no such model, or it cannot be loaded so.
    """
    if quantization is not None and _offloads(device_map):
        raise UserError("model.device_map: a quantised model cannot be offloaded; leave it out, or quantization")
    options: dict[str, Any] = {
        "revision": revision,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "device_map": device_map,
        "offload_folder": offload_folder,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": use_safetensors or None,
    }
    config = _quantization_config(quantization, llm_int8_threshold)
    if config is not None:
        options["quantization_config"] = config
        options["device_map"] = device_map or {"": device or torch.device("cpu")}
    if revision is not None and Path(name).is_dir():
        raise UserError(f"model.revision: {revision!r} is for models on the hub; {name} is a folder")
    try:
        with float32_by_default():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                output_loading_info=True,
                **{key: value for key, value in options.items() if value is not None},
            )
    except Exception as error:  # whatever a loader or the code that comes with a model may raise
        if _adapter_base(name, revision) is not None and not is_peft_available():
            message = f"model.model_name: {name} is an adapter of another model; pip install peft to load it"
            raise UserError(message) from error
        if device_map is not None and "device_map" in str(error):
            mend = "set model.offload_folder" if "offload_folder" in str(error) else "change it or leave it out"
            message = f"model.device_map: {device_map!r} cannot be used ({_reason(error)}); {mend}"
            raise UserError(message) from error
        if use_safetensors and "safetensors" in str(error):
            raise UserError(
                f"model.use_safetensors: {name} has no safetensors files; false reads pickled ones"
            ) from error
        raise UserError(_not_loaded("model.model_name", "model", name, error)) from error
    model, loading = loaded
    absent = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if absent:
        raise UserError(
            f"model.model_name: {name} lacks {len(absent)} weights of its config, such as {absent[0]}; they "
            "would be random; get a whole checkpoint"
        )
    # A checkpoint that is quantised keeps the settings it was quantised with, whatever it is told.
    settings = quantization_settings(model)
    for setting, asked in (("quantization", quantization), ("llm_int8_threshold", llm_int8_threshold)):
        if asked is not None and settings.get(setting) != asked:
            raise UserError(
                f"model.{setting}: {name} is already quantised, with {settings.get(setting)}; leave it out"
            )
    # On CPUs the backward of PyTorch's fused attention is slow in bfloat16: GPT-2 takes 1.4 times as long.
    on_cpu = device is not None and device.type == "cpu" and device_map is None
    if attn_implementation is None and on_cpu and model.dtype == torch.bfloat16:
        model.set_attn_implementation("eager")
    model.eval()
    accept(model)
    return cast(PreTrainedModel, model)


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False, setting: str = "data.tokenizer"
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by hub name or from a local folder; for an adapter that has none, its base model's.

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
        base = _adapter_base(name, revision)
        if base not in (None, name):
            return load_tokenizer(base, trust_remote_code=trust_remote_code, setting=setting)
        raise UserError(_not_loaded(setting, "tokenizer", name, error)) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(f"{setting}: the tokenizer of {name} holds no vocabulary; name one by data.tokenizer")
    return cast(PreTrainedTokenizerBase, tokenizer)


def find_language_model(owner: nn.Module, path: str | None = None, *, setting: str) -> PreTrainedModel:
    """The one language model in a module, or in what of it a path names; with PEFT's wrapper, where it has one.

    Args:
        owner: The module.
        path: Of an attribute, such as `student` or `net.decoder`; it need not be a module's own child.
        setting: What to name where there is not just one.

    Raises:
        UserError: There is no such attribute, or none or several language models in it.
    """
    try:
        where = owner if path is None else attrgetter(path)(owner)
    except AttributeError as error:
        raise UserError(f"{setting}: {error}; check the path") from error
    found: dict[str, PreTrainedModel] = {}
    for name, module in where.named_modules() if isinstance(where, nn.Module) else ():
        inner = module.get_base_model() if hasattr(module, "active_peft_config") else module
        # Outer modules come first, and a language model has a smaller one, without its head, in it.
        if isinstance(inner, PreTrainedModel) and not any(
            name.startswith(f"{outer}." if outer else "") for outer in found
        ):
            found[name] = cast(PreTrainedModel, module)
    with_head = {name: model for name, model in found.items() if model.get_output_embeddings() is not None}
    if len(with_head) != 1:
        what = f"{path or type(owner).__name__} holds {len(with_head)} language models of transformers"
        raise UserError(f"{setting}: {what} ({', '.join(with_head)}), not one; name its attribute")
    return next(iter(with_head.values()))


def accept(model: PreTrainedModel) -> None:
    """Refuses a model that is not what it says, and says once what its number format is not fit for.

    Raises:
        UserError: It is meant to be quantised, but none of it is.
    """
    if getattr(model, "is_quantized", False):
        for name in REPETITIVE_LOGGERS:
            logging.getLogger(name).addFilter(_is_new)
        settings = quantization_settings(model)
        layers = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}.get(settings["quantization"])
        if layers is not None and not any(type(module).__name__ == layers for module in model.modules()):
            raise UserError(
                f"model: it says {settings['quantization']}, but no layer of it is quantised; load it without "
                "offloading it"
            )
    if getattr(model, "dtype", None) == torch.float16:
        warn_once("model.dtype: gradients can underflow to 0 in float16; bfloat16 is the half precision to choose")


@rank_zero_only
def warn_once(message: str) -> None:
    """Logs a warning once a process, in the first process only."""
    logger.addFilter(_is_new)
    logger.warning(message)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 unless told otherwise: a Trainer's `precision` may have set another format.

    Position tables are made in it when a model is loaded.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def is_placed(model: nn.Module) -> bool:
    """Whether the model's own loader has put it on its devices, from which it must not be moved."""
    return getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)


def is_spread(model: nn.Module) -> bool:
    """Whether the model is on several devices, or in part on none until it is used."""
    devices = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(devices) > 1 or "disk" in devices


def quantization_settings(model: PreTrainedModel) -> dict[str, Any]:
    """How a model is quantised, with what of bitsandbytes' settings changes a number, in JSON types."""
    if not getattr(model, "is_quantized", False):
        return {"quantization": None}
    config: Any = model.config.quantization_config
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    for bits, prefix in (("8bit", "llm_int8_"), ("4bit", "bnb_4bit_")):
        if settings.get(f"load_in_{bits}"):
            chosen = {name: value for name, value in settings.items() if name.startswith(prefix)}
            return {"quantization": bits, **chosen, "gradient": "through dequantised weights"}
    return {"quantization": str(settings["quant_method"])}


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model, as it is now, that changes a number, in JSON types."""
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


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's shape and of a sample of every parameter, to know it again by.

    It is the same wherever the weights are, on devices or on disk.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    for path, module in model.named_modules():
        if hasattr(module, "merged_adapters"):
            digest.update(repr([getattr(module, name, None) for name in ADAPTER_STATE]).encode())
        # Weights on disk are read for as long as they are looked at.
        with align_module_device(module):
            for name, parameter in module.named_parameters(recurse=False):
                sample = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)]
                digest.update(f"{path}.{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
                digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def _quantization_config(quantization: Quantization | None, threshold: float | None) -> BitsAndBytesConfig | None:
    if threshold is not None and quantization != "8bit":
        raise UserError("model.llm_int8_threshold: it is for model.quantization: 8bit; set that or leave it out")
    if threshold is not None and threshold < 0:
        raise UserError(f"model.llm_int8_threshold: {threshold} is less than 0")
    if quantization == "8bit":
        chosen = {} if threshold is None else {"llm_int8_threshold": float(threshold)}
        return BitsAndBytesConfig(load_in_8bit=True, **chosen)
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return None


def _offloads(device_map: str | dict[str, Any] | None) -> bool:
    devices = set(map(str, device_map.values())) if isinstance(device_map, dict) else set()
    return "disk" in devices or (len(devices) > 1 and "cpu" in devices)


def _adapter_base(name: str, revision: str | None) -> str | None:
    """The base model that a PEFT adapter names; None where `name` is no adapter."""
    try:
        path = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # there is no such repository, or it can be none
        return None
    return json.loads(Path(path).read_text()).get("base_model_name_or_path") if path is not None else None


def _is_new(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if message in _logged:
        return False
    _logged.add(message)
    return True


def _reason(error: Exception) -> str:
    words = re.sub(r"\x1b\[[\d;]*m", "", str(error)).split()
    return " ".join(words or [type(error).__name__])[:300]


def _not_loaded(setting: str, what: str, name: str, error: Exception) -> str:
    if Path(name).is_dir():
        mend = f"check that the folder is what save_pretrained wrote, and the settings beside {setting}"
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{setting}: there is no folder {name}; check the path"
    else:
        mend = "check the name and the network, or give a local folder"
    return f"{setting}: no {what} {name!r} could be loaded ({_reason(error)}); {mend}"
