"""What a run fixes before the scores that depend on it, for all of its processes and continuations.

That is the error model of an adaptive run, and the mean writes of a run with mean ablation.

Axes: L layers, H width of the component's output.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lit_attr.errors import ArgumentError, UserError
from lit_attr.records.files import check_run, read_sealed, sealed, write_first, write_sealed
from lit_attr.records.schema import ERROR_MODEL_FORMAT, FORMAT_VERSION

if TYPE_CHECKING:
    from lit_attr.records.folder import RunFolder

# The manifest's field with the hash of the mean writes.
MEANS_HASH = "mean_writes"
# A component's name is followed by this for its mean write at position 0.
AT_0 = ".position_0"

Means = Mapping[str, NDArray[np.float32]]


def keep_error_model(folder: RunFolder, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the error model unless there is one, and returns the one that is there."""
    with folder.writing():
        header = {"format": ERROR_MODEL_FORMAT, "version": FORMAT_VERSION, "run": folder.run_name()}
        write_first(folder.error_model, sealed({**header, **fields}))
    return read_sealed(folder.error_model, ERROR_MODEL_FORMAT)


def read_error_model(folder: RunFolder) -> dict[str, Any] | None:
    """The error model; None where there is none.

    Raises:
        UserError: It is damaged, of another version, or of another run.
    """
    if not folder.error_model.exists():
        return None
    fields = read_sealed(folder.error_model, ERROR_MODEL_FORMAT)
    check_run(folder.error_model, fields.get("run"), folder.read_manifest())
    return fields


def keep_means(folder: RunFolder, content: bytes) -> None:
    """Writes the mean writes unless there are any, and their hash into the manifest."""
    with folder.writing():
        write_first(folder.mean_writes, content)
        manifest = folder.read_manifest()
        if MEANS_HASH not in manifest:
            # Every process that comes here writes the same.
            digest = hashlib.sha256(folder.mean_writes.read_bytes()).hexdigest()
            write_sealed(folder.manifest, {**manifest, MEANS_HASH: digest})


def has_means(folder: RunFolder) -> bool:
    """Whether the run has mean writes on disk.

    Raises:
        UserError: They are gone, or not those that the run began with.
    """
    wanted = folder.read_manifest().get(MEANS_HASH)
    if not folder.mean_writes.exists():
        if wanted is not None:
            raise UserError(
                f"{folder.mean_writes}: it is gone, and the scores on disk were computed with it; restore it, or "
                "give another folder"
            )
        return False
    if wanted is not None and hashlib.sha256(folder.mean_writes.read_bytes()).hexdigest() != wanted:
        raise UserError(
            f"{folder.mean_writes}: it is not the file that the run began with; restore that, or give another "
            "folder"
        )
    return True


def encode_means(means: Means, layers: Sequence[int]) -> bytes:
    """The content of a safetensors file with mean writes.

    Args:
        means: By component, and by component with `AT_0`: float32 [L, H].
        layers: The layer of each row.
    """
    tensors = {name: np.ascontiguousarray(mean_LH) for name, mean_LH in means.items()}
    return save(tensors, {"layers": json.dumps([*layers])})


def read_means(
    path: str, layers: Sequence[int], depth: int, components: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Reads mean writes for some layers and components.

    Args:
        path: A safetensors file as of :func:`encode_means`. Without the names of its layers it has a row for each
            of `layers`, or for every layer of the model.
        layers: The layers that are wanted.
        depth: The number of layers of the model.
        components: The components that are wanted.

    Raises:
        ArgumentError: The file cannot be read, or lacks a component or layer, as a fault of `mean_writes`.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in [*file.keys()]}
    except (OSError, SafetensorError) as error:
        raise ArgumentError(
            "mean_writes", f"{path} is not a safetensors file that can be read ({error}); give another"
        ) from error
    try:
        named = json.loads(metadata["layers"]) if "layers" in metadata else None
    except ValueError:
        named = None
    means = {}
    for component in components:
        for name in (component, component + AT_0):
            if name not in found:
                raise ArgumentError("mean_writes", f"{path} lacks the tensor {name!r}, layers × width; add it")
            mean_LH = np.asarray(found[name], dtype=np.float32)
            rows = named or (layers if len(mean_LH) == len(layers) else range(depth))
            if mean_LH.ndim != 2 or len(mean_LH) != len(rows) or not {*layers} <= {*rows}:
                raise ArgumentError(
                    "mean_writes",
                    f"{path}: {name!r} has the shape {list(mean_LH.shape)}, not a row for each of the layers "
                    f"{', '.join(map(str, layers))}; take means of these layers",
                )
            if not np.isfinite(mean_LH).all():
                raise ArgumentError(
                    "mean_writes", f"{path}: {name!r} has numbers that are not finite; give others"
                )
            means[name] = mean_LH[[list(rows).index(layer) for layer in layers]]
    return means
