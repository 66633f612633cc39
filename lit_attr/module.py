"""The Lightning module: loads a model and attributes each batch it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution import AttributionBatch, attribute_batch
from lit_attr.contrasts import ContrastBatch, Step
from lit_attr.errors import UserError
from lit_attr.locate import Location, locate, max_positions, token_embedding
from lit_attr.models import DEMO_MODEL, Dtype, Quantization, fingerprint, is_placed, load_model


class AttributionModule(pl.LightningModule):
    """Contrastive gradient × activation of a causal language model's MLPs, as a prediction module.

    `predict_step` takes a `ContrastBatch` from any loader and returns an `AttributionBatch` on the CPU. The model
    is loaded when the Trainer asks for it, frozen while it is used, and never trained.

    Args:
        model_name: Hub name or local folder of a causal language model. Default: the demo model of this package.
        model: A loaded model, in place of a name.
        tokenizer: The tokenizer of `model`, for a data module that has none of its own. Default: what the model's
            name says.
        revision: Branch, tag or commit of the model on the hub.
        layers: Which layers to attribute to: `all`, one index, or a list; negative indices count from the top.
        component: `mlp`, `attention`, `block`, or a dotted module path with `{layer}` in it.
        step: Where the two answers are told apart: `divergence`, the first token that differs, or `all`, every
            token they can be compared at. A data module without a step of its own follows it.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        quantization: `8bit` or `4bit` weights by bitsandbytes. Gradients then go through dequantised weights.
        attn_implementation: Which attention code transformers uses, such as `sdpa` or `eager`.
        device_map: Spread the model over devices as transformers does, such as `auto`; one process only.
        trust_remote_code: Run code that comes with the model.
    """

    def __init__(
        self,
        model_name: str | None = None,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        layers: int | list[int] | Literal["all"] = "all",
        component: str = "mlp",
        step: Step = "divergence",
        dtype: Dtype = "float32",
        quantization: Quantization | None = None,
        attn_implementation: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        loading = {
            "model_name": model_name,
            "revision": revision,
            "quantization": quantization,
            "attn_implementation": attn_implementation,
            "device_map": device_map,
        }
        if model is not None and (given := [name for name, value in loading.items() if value is not None]):
            raise UserError(f"model.{given[0]}: is for a model that is loaded here, and a model object was given")
        self.save_hyperparameters(ignore=["model", "tokenizer"])
        if model_name == "":
            raise UserError("model.model_name: it is empty; leave it out for the demo model")
        # A model object made in memory may have no name.
        object_name = str(model.name_or_path) if model is not None else DEMO_MODEL
        self.model_name = object_name if model_name is None else model_name
        self.tokenizer: PreTrainedTokenizerBase | str | None = tokenizer or self.model_name or None
        self.revision = revision
        self.layers: Sequence[int] | int | str = layers
        self.component = component
        self.step: Step = step
        self.dtype_name: Dtype = dtype
        self.quantization: Quantization | None = quantization
        self.attn_implementation = attn_implementation
        self.device_map = device_map
        self.trust_remote_code = trust_remote_code
        self.location: Location | None = None
        self.language_model: PreTrainedModel | None = None
        if model is not None:
            self._hold(model)

    def configure_model(self) -> None:
        """Loads the model, once, and finds the modules to attribute to.

        Raises:
            UserError: The model cannot be loaded, or a layer or component is not in it.
        """
        if self.location is not None:
            return
        trainer = self._trainer
        if self.language_model is None:
            if self.device_map is not None and trainer is not None and trainer.world_size > 1:
                raise UserError(
                    "model.device_map: a model spread over devices runs in one process; set trainer.devices: 1"
                )
            self._hold(
                load_model(
                    self.model_name,
                    revision=self.revision,
                    dtype=self.dtype_name,
                    quantization=self.quantization,
                    device_map=self.device_map,
                    attn_implementation=self.attn_implementation,
                    trust_remote_code=self.trust_remote_code,
                    device=trainer.strategy.root_device if trainer is not None else None,
                )
            )
        self.location = locate(self._model, layers=self.layers, component=self.component)

    def predict_step(self, batch: ContrastBatch, batch_idx: int, dataloader_idx: int = 0) -> AttributionBatch:
        """Attributes one batch.

        Args:
            batch: Contrasts, on any device.
            batch_idx: Not used; the batch carries its own ids.
            dataloader_idx: Not used.
        """
        self.configure_model()
        assert self.location is not None
        device = token_embedding(self._model).weight.device
        # Offloaded weights are on no device until they are used.
        batch = batch.to(device if device.type != "meta" else self.device)
        return attribute_batch(self._model, self.location, batch, component=self.component).to("cpu")

    def identity(self) -> dict[str, Any]:
        """Everything about the model and the scores that changes a number, in JSON types."""
        self.configure_model()
        assert self.location is not None
        config = self._model.config
        return {
            # Where the demo model is installed says nothing about it.
            "model_name": self.model_name if self.model_name != DEMO_MODEL else "demo",
            "revision": self.revision,
            "commit": getattr(config, "_commit_hash", None),
            "model_type": config.model_type,
            "weights": fingerprint(self._model),
            "layers": list(self.location.layers),
            "component": self.component,
            "rule": "gradient",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "quantization": _quantization(self._model),
            "attn_implementation": config._attn_implementation,
        }

    @property
    def max_positions(self) -> int | None:
        """How many tokens a context may have. Loads the model."""
        self.configure_model()
        return max_positions(self._model)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the model embeds. Loads the model."""
        self.configure_model()
        return token_embedding(self._model).num_embeddings

    @property
    def _model(self) -> PreTrainedModel:
        assert self.language_model is not None
        return self.language_model

    def _hold(self, model: PreTrainedModel) -> None:
        if is_placed(model):
            # Not as a submodule: Lightning would move it from where its own loader has put it.
            object.__setattr__(self, "language_model", model)
        else:
            self.language_model = model


def _quantization(model: PreTrainedModel) -> str | None:
    for bits in ("8bit", "4bit"):
        if getattr(model, f"is_loaded_in_{bits}", False):
            return bits
    return "other" if getattr(model, "is_quantized", False) else None
