"""A language model's weights, out of the checkpoint of a Lightning module that it was part of."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_attr.errors import UserError
from lit_attr.models.loading import warn_once

# How many names a message lists.
LISTED = 3
NAME_IT = "name the model that was trained by model.model_name"
GIVE_ONE = "give a file that Lightning's ModelCheckpoint has written"


def read_checkpoint(path: str | Path, *, weights_only: bool = True) -> dict[str, Any]:
    """Reads a checkpoint file, onto the CPU.

    Args:
        path: The file.
        weights_only: Refuse a file that holds other objects than tensors, numbers and texts in lists and dicts.

    Raises:
        UserError: There is no such file, or it is no checkpoint.
    """
    if not Path(path).is_file():
        if Path(path).is_dir():
            raise UserError(f"ckpt_path: {path} is a folder, as of a sharded checkpoint; make one file of it")
        raise UserError(f"ckpt_path: there is no file {path}; check the path")
    if not zipfile.is_zipfile(path):
        raise UserError(f"ckpt_path: {path} is cut short, or no checkpoint at all; {GIVE_ONE}")
    try:
        # Mapped: what an optimizer keeps, often twice the weights, is never read then.
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except Exception as error:  # whatever reading a file of any kind may raise
        kind = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if kind is not None:
            raise UserError(
                f"ckpt_path: {path} holds more than weights, such as {kind[1]}; if it is from a source you trust, "
                "--weights_only false reads it, and runs what code is in it"
            ) from error
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"ckpt_path: {path} cannot be read ({reason}); {GIVE_ONE}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"ckpt_path: {path} has no state_dict in it; {GIVE_ONE}")
    return checkpoint


def load_weights(model: nn.Module, saved: Mapping[str, Any], name: str) -> None:
    """Loads the weights of a model that was part of another module, whatever that called it.

    The part of the names before the model's own, such as `model.` or `net.decoder.`, is found by comparison. What
    other parts of the module had is left out, with a warning.

    Args:
        model: The model. It keeps its devices and its number format.
        saved: Of the module: names to weights.
        name: What messages call the model.

    Raises:
        UserError: Some of the model's weights are not there, or are of another shape; or those of several models
            fit.
    """
    tensors = {key: value for key, value in saved.items() if isinstance(value, Tensor)}
    wanted = model.state_dict(keep_vars=True)
    prefixes = {key.removesuffix(tail) for key in tensors for tail in _tails(key) if tail in wanted}
    if not prefixes:
        raise UserError(
            f"ckpt_path: no weight in it is one of {name}, a {type(model).__name__}; it has "
            f"{_listed([*tensors])}; {NAME_IT}"
        )
    parts = [_part(prefix, tensors, wanted) for prefix in sorted(prefixes)]
    fitting = [part for part in parts if part.misfit is None]
    if not fitting:
        part = max(parts, key=lambda part: len(part.weights))
        raise UserError(f"ckpt_path: the weights {_under(part.prefix)} are not those of {name}: {part.misfit}")
    # A module may hold one model under two names, such as a compiled one beside itself.
    if any(not _are_equal(part.weights, fitting[0].weights) for part in fitting[1:]):
        raise UserError(
            f"ckpt_path: {len(fitting)} models in it fit {name}, {_listed([_under(p.prefix) for p in fitting])}; "
            "in Python, AttributionModule.from_lightning takes the one you name"
        )
    used = {f"{part.prefix}{weight}" for part in fitting for weight in (*part.weights, *part.buffers)}
    if others := [key for key in tensors if key not in used]:
        owners = sorted({_owner(key, fitting[0].prefix) for key in others})
        warn_once(f"ckpt_path: {len(others)} tensors of other parts are left out, those of {_listed(owners)}")
    model.load_state_dict(fitting[0].weights, strict=False)


class _Part(NamedTuple):
    """What of a checkpoint has a prefix.

    Attributes:
        prefix: Empty, or with a dot at its end.
        weights: The model's, by the model's own names.
        buffers: What an older version of the model's code saved and nobody needs.
        misfit: Why these are not the model's weights, and the mend; None where they are.
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
        return f"it lacks {len(missing)} of them, {_listed(missing)}; {NAME_IT}"
    for weight, tensor in weights.items():
        if tensor.shape != wanted[weight].shape:
            sizes = [" × ".join(map(str, each.shape)) for each in (tensor, wanted[weight])]
            return f"{weight} is of {sizes[0]}, not {sizes[1]}; {NAME_IT}"
    for names in tied:
        there = [weight for weight in names if weight in weights]
        if any(not torch.equal(weights[weight], weights[there[0]]) for weight in there[1:]):
            return f"{' and '.join(there)} are one in the model; its config needs tie_word_embeddings: false"
    if added:
        return f"there are {len(added)} more, {_listed(added)}; {NAME_IT}"
    return None


def _tails(key: str) -> Iterator[str]:
    """The name itself, and what is left of it after each of its dots."""
    parts = key.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _are_equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(weights[name], others[name]) for name in weights.keys() & others.keys())


def _owner(key: str, prefix: str) -> str:
    """The outermost part of the module that a weight is of, and the language model is not."""
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
