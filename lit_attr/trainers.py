"""What a Trainer must not do to a language model that is attributed."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, TransformerEnginePrecision

from lit_attr.errors import UserError
from lit_attr.models.loading import warn_once


def check_trainer(trainer: pl.Trainer, *, spread: bool) -> None:
    """Refuses a Trainer that would change the model or cannot share it out.

    Args:
        trainer: The Trainer.
        spread: Whether the model is on several devices.

    Raises:
        UserError: It is such a Trainer.
    """
    plugin = trainer.precision_plugin
    if isinstance(plugin, (BitsandbytesPrecision, TransformerEnginePrecision)):
        raise UserError(
            f"trainer.plugins: {type(plugin).__name__} would put other layers into the model; leave it out, "
            "and set model.quantization for 8-bit or 4-bit"
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
        warn_once(
            f"trainer.precision: {trainer.precision} changes nothing here; set model.dtype for another format"
        )
