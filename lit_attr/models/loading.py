"""Models and tokenizers from the hub, a local folder, or the package itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_gguf_available, is_peft_available
from transformers.utils.peft_utils import find_adapter_config_file

from lit_attr.errors import ArgumentError, check_choice, one_line, warn_about
from lit_attr.models.language_model import check_model
from lit_attr.models.weights.quantization import Quantization as Quantization
from lit_attr.models.weights.quantization import quantization_config, quantization_settings
from lit_attr.text import counted

if TYPE_CHECKING:
    from transformers.distributed.configuration_utils import DistributedConfig

Dtype = Literal["float32", "bfloat16", "float16", "auto"]

# Where Linux lists the instructions of the processor, and those with which it computes in bfloat16 (x86, ARM).
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})

DEMO_MODEL = str(Path(__file__).parents[1] / "assets" / "demo_model")


def load_model(
    model_name: str,
    *,
    gguf_file: str | None = None,
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
    distributed_config: DistributedConfig | None = None,
) -> PreTrainedModel:
    """Loads a causal language model in eval mode.

    Args:
        model_name: Hub name or local folder, of a model or of a PEFT adapter, which brings its base model; or a
            GGUF file.
        gguf_file: The name of a GGUF file in that folder or repository. Its weights are dequantised.
        revision: Branch, tag or commit on the hub.
        dtype: The number format of the weights; `auto` takes the checkpoint's own.
        quantization: `8bit` (LLM.int8, Dettmers et al., 2022) or `4bit` (NF4, Dettmers et al., 2023), by
            bitsandbytes.
        llm_int8_threshold: 8-bit layers take a feature that exceeds this at any token of a batch through float16
            for the whole batch. With 0 they take none, so that a row does not depend on the others. Default:
            bitsandbytes' 6.
        device_map: Spreads the model over devices as transformers does, such as `auto`.
        offload_folder: Where weights that `device_map` leaves on disk go, if the checkpoint cannot be read piece
            by piece; transformers says when it is needed.
        attn_implementation: The attention code of transformers, such as `eager` or `sdpa`. Default: transformers'
            choice, except `eager` in bfloat16 on a CPU.
        trust_remote_code: Whether code that comes with the model may run.
        use_safetensors: Whether weights must be in safetensors files, which cannot hold code. Otherwise pickled
            ones are read too, by torch with `weights_only`.
        device: Where the model will be used. A quantised model is loaded there, since it cannot be moved later.
        distributed_config: How several processes share the weights.

    Raises:
        ArgumentError: There is no such model, or it cannot be loaded with these settings.
    """
    check_choice("dtype", dtype, get_args(Dtype))
    if quantization is not None:
        check_choice("quantization", quantization, get_args(Quantization))
    if quantization is not None and _offloads(device_map):
        raise ArgumentError("device_map", "a quantised model cannot be offloaded; leave it out, or quantization")
    place, gguf_file = gguf_place(model_name, gguf_file)
    if gguf_file is not None and quantization is not None:
        raise ArgumentError("quantization", "the weights of a GGUF file are dequantised; leave it out")
    if revision is not None and Path(place).is_dir():
        raise ArgumentError(
            "revision", f"{revision!r} is for models on the hub, and {place} is a folder; leave it out"
        )
    options: dict[str, Any] = {
        "gguf_file": gguf_file,
        "revision": revision,
        "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
        "device_map": device_map,
        "offload_folder": offload_folder,
        "attn_implementation": attn_implementation,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": (use_safetensors and gguf_file is None) or None,
        "distributed_config": distributed_config,
    }
    config = quantization_config(quantization, llm_int8_threshold)
    if config is not None:
        options["quantization_config"] = config
        options["device_map"] = device_map or {"": device or torch.device("cpu")}
    model = _from_pretrained(place, options)
    if gguf_file is not None:
        _unmark_gguf(model)
    # A quantised checkpoint keeps its own settings and ignores the arguments.
    settings = quantization_settings(model)
    for setting, asked in (("quantization", quantization), ("llm_int8_threshold", llm_int8_threshold)):
        if asked is not None and settings.get(setting) != asked:
            raise ArgumentError(
                setting, f"{model_name} is already quantised, with {settings.get(setting)}; leave it out"
            )
    # In bfloat16 the backward pass of PyTorch's fused attention is slow on CPUs: GPT-2 takes 1.4 times as long.
    on_cpu = device is not None and device.type == "cpu" and device_map is None
    if attn_implementation is None and on_cpu and model.dtype == torch.bfloat16:
        model.set_attn_implementation("eager")
    if on_cpu and model.dtype == torch.bfloat16 and lacks_bfloat16(CPU_INFO):
        warn_about(
            "dtype",
            "this CPU has no instructions for bfloat16; on such a CPU a run took 13 times as long as in float32; "
            "set float32",
        )
    model.eval()
    check_model(model)
    return model


def load_tokenizer(
    tokenizer: str,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer; of an adapter that has none, its base model's.

    Args:
        tokenizer: Hub name or local folder, or a GGUF file, which has its model's tokenizer.
        gguf_file: The name of a GGUF file in that folder or repository.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Raises:
        ArgumentError: There is no such tokenizer.
    """
    place, gguf_file = gguf_place(tokenizer, gguf_file, argument="tokenizer")
    given = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        loaded = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=trust_remote_code, **given
        )
    except Exception as error:  # loaders, and code that comes with a tokenizer, may raise anything
        base = adapter_base(tokenizer, revision, argument="tokenizer")
        if base not in (None, tokenizer):
            return load_tokenizer(base, trust_remote_code=trust_remote_code)
        raise not_loaded("tokenizer", "tokenizer", tokenizer, error) from error
    if len(loaded) <= len(loaded.all_special_tokens):
        raise ArgumentError("tokenizer", f"the tokenizer of {tokenizer} has no vocabulary; name another one")
    return cast(PreTrainedTokenizerBase, loaded)


def lacks_bfloat16(cpu_info: Path) -> bool:
    """Whether the processor has no instructions for bfloat16; False where it does not list its instructions.

    Args:
        cpu_info: The file in which Linux lists them; other systems have none.
    """
    if not cpu_info.is_file():
        return False
    lists = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpu_info.read_text(encoding="utf-8"), flags=re.MULTILINE)
    flags = {flag for line in lists for flag in line.split()}
    return bool(flags) and not flags & BFLOAT16_FLAGS


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Makes new tensors float32 by default, also where a Trainer's `precision` has set another format.

    transformers makes position tables in the default format when it loads a model.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gguf_place(name: str, gguf_file: str | None, *, argument: str = "model_name") -> tuple[str, str | None]:
    """The folder or repository of a model, and the GGUF file in it that has the model, if one has.

    Args:
        name: Hub name, local folder, or path of a GGUF file.
        gguf_file: The name of a GGUF file in the folder or repository.
        argument: The argument that the name came from.

    Raises:
        ArgumentError: There is no such file, or the package that reads GGUF files is not installed.
    """
    path = Path(name)
    if gguf_file is None and path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ArgumentError(argument, f"there is no file {name}; check the path")
        name, gguf_file = str(path.parent), path.name
    if gguf_file is not None and not is_gguf_available():
        raise ArgumentError(
            argument, f"{gguf_file} needs the package that reads GGUF files; pip install 'lit-attr[gguf]'"
        )
    return name, gguf_file


def adapter_base(name: str, revision: str | None, *, argument: str = "model_name") -> str | None:
    """The base model that a PEFT adapter names; None where `name` is not an adapter.

    Args:
        name: Hub name or local folder.
        revision: Branch, tag or commit on the hub.
        argument: The argument that the name came from.

    Raises:
        ArgumentError: The adapter's configuration names no base model, or adapters name each other.
    """
    base, names = _adapter_base(name, revision, argument), [name]
    following = base
    while following is not None:
        if following in names:
            circle = " → ".join([*names, following])
            raise ArgumentError(argument, f"adapters name each other as base model ({circle}); name a whole model")
        names.append(following)
        # Of a base on the hub this would be a request more, and adapters on the hub are checked there.
        following = _adapter_base(following, None, argument) if Path(following).is_dir() else None
    return base


def _adapter_base(name: str, revision: str | None, argument: str) -> str | None:
    try:
        path = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # no such repository, or not a valid name of one
        return None
    if path is None:
        return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not text, not JSON, or nested too deep
        raise ArgumentError(
            argument, f"{path} is not JSON ({one_line(error, 100)}); get the adapter again"
        ) from error
    if not isinstance(config, dict):
        raise ArgumentError(argument, f"{path} holds no object with settings; get the adapter again")
    base = config.get("base_model_name_or_path")
    if base is not None and (not isinstance(base, str) or not base or "\0" in base):
        raise ArgumentError(argument, f"base_model_name_or_path in {path} is not a name; write the base model's")
    return base


def not_loaded(argument: str, what: str, name: str, error: Exception) -> ArgumentError:
    """The error for a model or tokenizer that cannot be loaded, with the fix that fits its name.

    Args:
        argument: The argument that the name came from.
        what: `model` or `tokenizer`.
        name: Hub name, local folder, or path of a GGUF file.
        error: What the loader raised.
    """
    if Path(name).is_file():
        fix = "get the file again, or another one"
    elif Path(name).is_dir():
        fix = f"check that save_pretrained wrote the folder, and the settings beside {argument}"
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return ArgumentError(argument, f"there is no folder {name}; check the path")
    else:
        fix = "check the name and the network, or give a local folder"
    return ArgumentError(argument, f"no {what} {name!r} could be loaded ({_reason(error)}); {fix}")


def _from_pretrained(model_name: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model with its weights, all of which must be in the checkpoint."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        with float32_by_default():
            loaded: Any = AutoModelForCausalLM.from_pretrained(model_name, output_loading_info=True, **given)
    except Exception as error:  # loaders, and code that comes with a model, may raise anything
        raise _explained(error, model_name, options) from error
    model, loading = loaded
    absent = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if absent:
        raise ArgumentError(
            "model_name",
            f"{model_name} lacks {counted(len(absent), 'weight')} of its config, such as {absent[0]}, which would "
            "be random; get a complete checkpoint",
        )
    return cast(PreTrainedModel, model)


def _unmark_gguf(model: PreTrainedModel) -> None:
    """Removes transformers' marks of quantisation: what it reads of a GGUF file are plain weights."""
    # Its types do not declare them.
    marked: Any = model
    marked.is_quantized, marked.hf_quantizer = False, None
    del marked.config.quantization_config, marked.quantization_method


def _explained(error: Exception, model_name: str, options: dict[str, Any]) -> ArgumentError:
    """What a loader's error means for the argument that caused it."""
    device_map, gguf_file = options["device_map"], options["gguf_file"]
    if gguf_file is not None and Path(model_name, gguf_file).is_file():
        return not_loaded("model_name", "model", str(Path(model_name, gguf_file)), error)
    if adapter_base(model_name, options["revision"]) is not None and not is_peft_available():
        return ArgumentError(
            "model_name", f"{model_name} is an adapter of another model; pip install peft to load it"
        )
    if device_map is not None and "device_map" in str(error):
        fix = "set offload_folder" if "offload_folder" in str(error) else "change it or leave it out"
        return ArgumentError("device_map", f"{device_map!r} cannot be used ({_reason(error)}); {fix}")
    if options["use_safetensors"] and "safetensors" in str(error):
        return ArgumentError("use_safetensors", f"{model_name} has no safetensors files; false reads pickled ones")
    return not_loaded("model_name", "model", model_name, error)


def _offloads(device_map: str | dict[str, Any] | None) -> bool:
    devices = set(map(str, device_map.values())) if isinstance(device_map, dict) else set()
    return "disk" in devices or (len(devices) > 1 and "cpu" in devices)


def _reason(error: Exception) -> str:
    """An error's message in one line, without colours."""
    words = re.sub(r"\x1b\[[\d;]*m", "", str(error)).split()
    return " ".join(words or [type(error).__name__])[:300]
