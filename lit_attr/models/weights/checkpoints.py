"""The weights of a language model from the checkpoint of a Lightning module that contains it."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_attr.errors import ArgumentError, UserError, one_line, shown, warn_about
from lit_attr.models.hooks import uncompiled
from lit_attr.text import counted

# What wrappers of modules put into the names of weights.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# How many names a message lists.
LISTED = 3
NAME_IT = "give the model that was trained"
GIVE_ONE = "give a file that Lightning's ModelCheckpoint wrote"


def read_checkpoint(path: str | Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Reads a checkpoint file onto the CPU.

    Args:
        path: The file.
        weights_only: Whether to refuse a file with other objects than tensors, numbers and strings in lists and
            dicts.

    Raises:
        UserError: There is no such file, or it is not a checkpoint.
    """
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"{path}: it is a folder, as of a sharded checkpoint; convert it to one file")
        raise UserError(f"{path}: there is no such file; check the path")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: it is truncated, or not a checkpoint; {GIVE_ONE}")
    try:
        # Mapped, so that the optimizer's state, often twice the size of the weights, is never read.
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except Exception as error:  # unpickling may raise anything
        kind = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if kind is not None:
            raise UserError(
                f"{path}: it holds more than weights, such as {kind[1]}; if you trust its source, "
                "set weights_only to false, which runs the code in it"
            ) from error
        raise UserError(f"{path}: it cannot be read ({one_line(error, 100)}); {GIVE_ONE}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path}: it contains no state_dict; {GIVE_ONE}")
    return checkpoint


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], name: str) -> None:
    """Loads the weights of a model from the state of a module that contains it under any attribute.

    The prefix of its names, such as `model.` or `net.decoder.`, is found by comparison with the model's own. The
    weights of other parts of the module are left out, with a warning.

    Args:
        model: The model. It keeps its devices and its number format.
        checkpoint: The state dict of the module's checkpoint.
        name: The model's name in messages.

    Raises:
        ArgumentError: Some of the model's weights are missing or have another shape, or several models fit.
    """
    tensors = _named_tensors(checkpoint)
    with uncompiled(model) as model:
        _load_tensors(model, tensors, name)


def _load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    wanted = model.state_dict(keep_vars=True)
    prefixes = {key.removesuffix(tail) for key in tensors for tail in _tails(key) if tail in wanted}
    if not prefixes:
        raise ArgumentError(
            "checkpoint",
            f"none of its weights belongs to {name}, a {type(model).__name__}; it has {_listed([*tensors])}; "
            f"{NAME_IT}",
        )
    parts = [_part(prefix, tensors, wanted) for prefix in sorted(prefixes)]
    fitting = [part for part in parts if part.misfit is None]
    if not fitting:
        part = max(parts, key=lambda part: len(part.weights))
        raise ArgumentError(
            "checkpoint", f"the weights {_under(part.prefix)} are not those of {name}: {part.misfit}"
        )
    # A module may hold the same model under two names, such as a compiled one beside the original.
    if any(not _are_equal(part.weights, fitting[0].weights) for part in fitting[1:]):
        raise ArgumentError(
            "checkpoint",
            f"{len(fitting)} models in it fit {name}, {_listed([_under(p.prefix) for p in fitting])}; in Python, "
            "AttributionModule.from_lightning takes the one that you name",
        )
    used = {f"{part.prefix}{weight}" for part in fitting for weight in (*part.weights, *part.buffers)}
    if others := [key for key in tensors if key not in used]:
        owners = sorted({_owner(key, fitting[0].prefix) for key in others})
        left_out = counted(len(others), "tensor")
        warn_about("checkpoint", f"left out: {left_out} of other parts, those of {_listed(owners)}")
    model.load_state_dict(fitting[0].weights, strict=False)


def _named_tensors(checkpoint: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict under the names that they have without wrappers such as torch.compile's."""
    tensors: dict[str, Tensor] = {}
    for key, value in checkpoint.items():
        if not isinstance(key, str):
            raise ArgumentError("checkpoint", f"{shown(str(key))} in its state_dict is not a name; {GIVE_ONE}")
        if isinstance(value, Tensor):
            name = ".".join(part for part in key.split(".") if part not in WRAPPERS)
            if name in tensors and not torch.equal(tensors[name], value):
                raise ArgumentError("checkpoint", f"it has two weights {name}, one of them as {key}; {NAME_IT}")
            tensors[name] = value
    return tensors


class _Part(NamedTuple):
    """The tensors of a checkpoint that share a prefix.

    Attributes:
        prefix: Empty, or with a dot at its end.
        weights: The model's weights by the model's own names.
        buffers: Tensors that an older version of the model's code saved and that nothing needs.
        misfit: Why these are not the model's weights, and the fix; None where they are.
    """

    prefix: str
    weights: dict[str, Tensor]
    buffers: list[str]
    misfit: str | None


def _part(prefix: str, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> _Part:
    here = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    weights = {weight: here[weight] for weight in wanted if weight in here}
    tied: dict[int, list[str]] = {}
    for weight, tensor in wanted.items():
        tied.setdefault(id(tensor), []).append(weight)
    roots = {weight.partition(".")[0] for weight in wanted}
    inside = [weight for weight in here if weight not in wanted and weight.partition(".")[0] in roots]
    added = [
        weight for weight in inside if weight.endswith((".weight", ".bias")) and here[weight].is_floating_point()
    ]
    return _Part(
        prefix,
        weights,
        [weight for weight in inside if weight not in added],
        _misfit(weights, wanted, [*tied.values()], added),
    )


def _misfit(
    weights: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    tied: Sequence[Sequence[str]],
    added: Sequence[str],
) -> str | None:
    missing = [names[0] for names in tied if not any(weight in weights for weight in names)]
    if any(".lora_" in weight or ".base_layer." in weight for weight in added):
        return f"an adapter is among them, {_listed(added)}; save it with save_pretrained and name its folder"
    if missing:
        return f"{len(missing)} are missing, {_listed(missing)}; {NAME_IT}"
    for weight, tensor in weights.items():
        if (kind := _without_numbers(tensor)) is not None:
            return f"{weight} is {kind}; save a plain tensor of numbers"
        if tensor.shape != wanted[weight].shape:
            sizes = [" × ".join(map(str, each.shape)) for each in (tensor, wanted[weight])]
            return f"{weight} has the shape {sizes[0]}, not {sizes[1]}; {NAME_IT}"
    for names in tied:
        present = [weight for weight in names if weight in weights]
        if any(not torch.equal(weights[weight], weights[present[0]]) for weight in present[1:]):
            return f"{' and '.join(present)} are tied in the model; its config needs tie_word_embeddings: false"
    if added:
        return f"there are {len(added)} weights more, {_listed(added)}; {NAME_IT}"
    return None


def _without_numbers(tensor: Tensor) -> str | None:
    """What a tensor is whose numbers cannot be loaded; None for a plain one."""
    if tensor.is_meta:
        return "on the device meta, where tensors have no numbers"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized or hasattr(tensor, "__tensor_flatten__"):
        return f"quantised ({type(tensor).__name__}, {tensor.dtype})"
    if tensor.is_floating_point() and not tensor.isfinite().all():
        return "not finite, so that every score would be"
    return None


def _tails(key: str) -> Iterator[str]:
    """The name itself, and its remainder after each of its dots."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _are_equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(weights[name], others[name]) for name in weights.keys() & others.keys())


def _owner(key: str, prefix: str) -> str:
    """The outermost part of the module that contains a weight and not the language model."""
    owner: list[str] = []
    for part in key.split("."):
        owner.append(part)
        if not prefix.startswith(".".join([*owner, ""])):
            break
    return ".".join(owner)


def _under(prefix: str) -> str:
    return f"under {prefix.removesuffix('.')}" if prefix else "under no name"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
