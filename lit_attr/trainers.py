"""What the module, the data module and the callbacks ask of a Trainer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from inspect import ismethod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import numpy as np
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, TransformerEnginePrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from numpy.typing import NDArray

from lit_attr.attribution.passes import Answers
from lit_attr.errors import UserError, warn_once
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.rows import Rejected
from lit_attr.facts.table.keys import Hashes
from lit_attr.records.screening import Answered, Screened
from lit_attr.records.state import RunState


@runtime_checkable
class OwnsRun(Protocol):
    """A callback that opens the run's folder and owns the run's state."""

    def run_state(self, trainer: pl.Trainer) -> RunState:
        """The state of the run. The first call opens the folder; every process has to make it."""


@runtime_checkable
class OwnsPilot(Protocol):
    """A callback that keeps the pilot and the error model of an adaptive run for all its processes."""

    def pilot_effects(self, trainer: pl.Trainer) -> list[tuple[Contrast, NDArray[np.float64]]]:
        """The exact effects [L, T] of the pilot, once all processes have computed theirs."""

    def read_error_model(self, trainer: pl.Trainer) -> Mapping[str, Any] | None:
        """The error model of the run, in JSON types; None where there is none yet."""

    def keep_error_model(self, trainer: pl.Trainer, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps an error model, and returns the one that the run has: the first that was kept."""


@runtime_checkable
class OwnsMeanWrites(Protocol):
    """A callback that keeps the mean writes of a run with mean ablation for all its processes."""

    def mean_writes(self, trainer: pl.Trainer) -> Path | None:
        """The file of the run's mean writes; None where there is none yet."""

    def keep_mean_writes(self, trainer: pl.Trainer, content: bytes) -> Path:
        """Keeps mean writes, unless the run has any, and returns the file of those that it has."""


@runtime_checkable
class OwnsScreening(Protocol):
    """A callback that keeps which contrasts a run attributes, by the model's answers."""

    def read_screened(self, trainer: pl.Trainer) -> tuple[Hashes, Answered]:
        """The contrasts that earlier runs have screened: the hashes of their keys, and the answers."""

    def keep_screened(self, trainer: pl.Trainer, rows: Iterable[Screened]) -> None:
        """Keeps the screened contrasts."""


@runtime_checkable
class AnswersContrasts(Protocol):
    """A module that answers contrasts without attributing them."""

    def answers(self, batch: ContrastBatch) -> Answers:
        """The model's answers, on the CPU."""


@runtime_checkable
class AwaitsOthers(Protocol):
    """A module whose processes may share a model, so that each has to take part in the passes of the others."""

    def await_others(self, *, at_end: bool = False) -> None:
        """Takes part until all processes wait here; at the end, until none makes another pass."""


@runtime_checkable
class HasIdentity(Protocol):
    """A module or data module that reports every setting that changes a number."""

    def identity(self) -> dict[str, Any]:
        """Settings and content, in JSON types."""


@runtime_checkable
class HasRejected(Protocol):
    """A data module that lists the rows it has left out."""

    rejected: Sequence[Rejected]


@runtime_checkable
class HasContent(Protocol):
    """A data module that can be extended: its contrasts keep their order when there are more of them."""

    def content(self, count: int | None = None) -> str:
        """A hash of the first `count` contrasts, or of all."""


def run_state(trainer: pl.Trainer | None) -> RunState | None:
    """The state of the Trainer's run; None where no callback keeps one, as without an `AttributionWriter`."""
    owner = owner_of_run(trainer)
    return None if owner is None or trainer is None else owner.run_state(trainer)


def owner_of_run(trainer: pl.Trainer | None) -> OwnsRun | None:
    """The callback that owns the run's state, if there is one."""
    callbacks = trainer.callbacks if trainer is not None else []  # type: ignore[attr-defined]  # set at run time
    return next((callback for callback in callbacks if isinstance(callback, OwnsRun)), None)


def await_others(trainer: pl.Trainer, *, at_end: bool = False) -> None:
    """Keeps processes that share a model together; call it before one process waits for another."""
    module: object = trainer.lightning_module
    if isinstance(module, AwaitsOthers):
        module.await_others(at_end=at_end)


def shares_model(trainer: pl.Trainer) -> bool:
    """Whether each process of the Trainer has a part of the model."""
    return isinstance(trainer.strategy, ModelParallelStrategy) and trainer.world_size > 1


def identity_of(part: object) -> Mapping[str, Any]:
    """The identity of a module or data module; its class where it has none."""
    # Somebody else's attribute of that name may be another thing, such as a `torch.nn.Identity`.
    if isinstance(part, HasIdentity) and ismethod(part.identity):
        identity: Mapping[str, Any] = part.identity()
        return identity
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}"}


def rejected_of(part: object) -> Sequence[Rejected]:
    """The rows that a data module has left out; none where it does not list them."""
    return part.rejected if isinstance(part, HasRejected) else ()


def datamodule_of(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    """The data module of the Trainer's run, where it has one."""
    # A Trainer sets the attribute, but its type does not declare it.
    return getattr(trainer, "datamodule", None)


def warn_of_other_lightning() -> None:
    """Warns where `pytorch_lightning` is imported: its Trainer refuses a module of `lightning.pytorch`.

    The two packages have the same classes twice. The Trainer of the other one refuses a module before it calls
    anything of it, so the warning is issued when the module is made.
    """
    if "pytorch_lightning" in sys.modules:
        warn_once(
            "AttributionModule: pytorch_lightning is imported, and its Trainer takes no module of "
            "lightning.pytorch; use `import lightning.pytorch as pl` for the Trainer"
        )


def named_strategy(name: str) -> Strategy:
    """A strategy by the import path of its class, with the defaults of its settings.

    Args:
        name: The path, such as `lightning.pytorch.strategies.ModelParallelStrategy`.

    Raises:
        UserError: There is no such class, or it is no strategy.
    """
    module, _, attribute = name.rpartition(".")
    try:
        strategy = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"trainer.strategy: {error}; check the path, or name one such as ddp") from error
    if not isinstance(strategy, Strategy):
        raise UserError(f"trainer.strategy: {name} is not a strategy of Lightning; name one such as ddp")
    return strategy


def check_trainer(trainer: pl.Trainer, *, spread: bool) -> None:
    """Refuses a Trainer that would change the model or run it in a way that it does not allow.

    Args:
        trainer: The Trainer.
        spread: Whether the model is on several devices.

    Raises:
        UserError: The Trainer has a strategy for training, a plugin that replaces layers, several processes for a
            model that is on several devices, or a checkpoint that SLURM's requeueing left behind.
    """
    plugin = trainer.precision_plugin
    if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
        raise UserError(
            f"trainer.strategy: {type(trainer.strategy).__name__} is for training; take ddp, or for a model "
            "larger than a device lightning.pytorch.strategies.ModelParallelStrategy"
        )
    if isinstance(plugin, (BitsandbytesPrecision, TransformerEnginePrecision)):
        raise UserError(
            f"trainer.plugins: {type(plugin).__name__} would replace layers of the model; leave it out, and set "
            "model.quantization for 8-bit or 4-bit weights"
        )
    if spread and trainer.world_size > 1:
        raise UserError(
            "model.device_map: a model spread over devices runs in one process; set trainer.devices: 1"
        )
    if SLURMEnvironment.detect() and (saved := trainer._checkpoint_connector._hpc_resume_path) is not None:
        raise UserError(
            f"trainer.default_root_dir: Lightning would load {saved} over the model; give another folder"
        )
    if trainer.precision != "32-true":
        warn_once(f"trainer.precision: {trainer.precision} has no effect here; set model.dtype instead")
