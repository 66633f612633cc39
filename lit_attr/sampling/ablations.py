"""The ablation of a run, and the mean writes that all of its processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import PreTrainedModel

from lit_attr.attribution.ablation import RESAMPLE, ZERO, Ablation, MeanAblation, mean_ablation
from lit_attr.attribution.adaptive import depth_of
from lit_attr.attribution.catalogue import AblationName, AblationOptions
from lit_attr.errors import ArgumentError
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.models.location import Location, input_device
from lit_attr.records.kept import AT_0, encode_means, read_means
from lit_attr.trainers import OwnsMeanWrites, owner_of_run, run_state

# Contrasts that go through the model together when writes are averaged.
BATCH = 16


def check_ablation_options(ablation: AblationName, options: AblationOptions) -> None:
    """Checks the options of ablations.

    Raises:
        ArgumentError: One has a value that it does not take, or belongs to another ablation.
    """
    if options.mean_contrasts < 1:
        raise ArgumentError("mean_contrasts", f"{options.mean_contrasts} is less than 1; give 1 or more")
    if options.mean_writes is not None:
        if ablation != "mean":
            raise ArgumentError("mean_writes", "it belongs to the ablation mean; leave it out or choose that")
        if not Path(options.mean_writes).is_file():
            raise ArgumentError("mean_writes", f"there is no file {options.mean_writes}; give another")


class SettledAblation:
    """The ablation of a run, with mean writes from a file of the user's, from the run, or from its contrasts.

    Args:
        name: The ablation.
        options: Options of single ablations.
    """

    def __init__(self, name: AblationName, options: AblationOptions) -> None:
        self._name, self._options = name, options
        self._settled: MeanAblation | None = None

    @property
    def contrasts(self) -> int:
        """Over how many contrasts of the run writes are averaged."""
        is_averaged = self._name == "mean" and self._options.mean_writes is None
        return self._options.mean_contrasts if is_averaged else 0

    def identity(self) -> dict[str, Any]:
        """What changes a number, in JSON types."""
        path = self._options.mean_writes
        return {
            "mean_contrasts": self.contrasts or None,
            "mean_writes": None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        }

    def forget(self) -> None:
        """Forgets the mean writes of an earlier run."""
        self._settled = None

    def settle(self, model: PreTrainedModel, location: Location, trainer: pl.Trainer | None) -> Ablation:
        """The ablation. The first call of a run may average writes.

        Args:
            model: The language model.
            location: The modules whose outputs are the writes.
            trainer: The Trainer of the run, one of whose callbacks keeps the mean writes.

        Raises:
            ArgumentError: There are no contrasts to average, nobody keeps the means, or a file does not fit.
        """
        if self._name != "mean":
            return ZERO if self._name == "zero" else RESAMPLE
        if self._settled is None:
            self._settled = self._mean(model, location, trainer)
        return self._settled

    def _mean(self, model: PreTrainedModel, location: Location, trainer: pl.Trainer | None) -> MeanAblation:
        path: str | Path | None = self._options.mean_writes
        if path is None:
            state = run_state(trainer)
            owner: object = owner_of_run(trainer)
            if trainer is None or state is None or not isinstance(owner, OwnsMeanWrites):
                raise ArgumentError(
                    "ablation",
                    "mean needs an AttributionWriter among trainer.callbacks, which keeps the mean writes, or a "
                    "file of them in ablation_options.mean_writes",
                )
            path = owner.mean_writes(trainer)
            if path is None:
                if not state.averaged:
                    raise ArgumentError(
                        "ablation", "mean needs contrasts to average; use a CounterfactDataModule, or mean_writes"
                    )
                path = owner.keep_mean_writes(trainer, _averaged(model, location, state.averaged))
        return _from_file(path, model, location)


def _averaged(model: PreTrainedModel, location: Location, contrasts: Sequence[Contrast]) -> bytes:
    """The content of a file with the mean writes over some contrasts."""
    device, left = input_device(model), iter(sorted(contrasts, key=lambda each: len(each.token_ids)))
    batches = iter(lambda: list(islice(left, BATCH)), [])
    mean = mean_ablation(model, location, (collate_contrasts(batch).to(device) for batch in batches))
    tensors = {}
    for component in dict.fromkeys(location.components):
        places = [place for place, name in enumerate(location.components) if name == component]
        tensors[component] = mean.mean_LH[places].numpy()
        tensors[component + AT_0] = mean.mean_at_0_LH[places].numpy()
    return encode_means(tensors, [*dict.fromkeys(location.layers)])


def _from_file(path: str | Path, model: PreTrainedModel, location: Location) -> MeanAblation:
    components, layers = [*dict.fromkeys(location.components)], [*dict.fromkeys(location.layers)]
    means = read_means(str(path), layers, depth_of(model, location), components)
    mean_LH, mean_at_0_LH = (
        torch.stack([torch.from_numpy(means[name + ending]) for name in components], 1).flatten(0, 1)
        for ending in ("", AT_0)
    )
    return MeanAblation(mean_LH, mean_at_0_LH)
