"""The Lightning module: loads a model and attributes each batch it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.exact_effects import ablate_batch, exact_effects_BLT
from lit_attr.attribution.faithfulness import Curves, faithfulness_curves
from lit_attr.attribution.gradient import AttributionBatch, attribute_batch
from lit_attr.attribution.rules import GRADIENT, Rule, RuleName, find_rule
from lit_attr.errors import UserError
from lit_attr.facts.contrasts import ContrastBatch, Step
from lit_attr.models.checkpoints import load_weights
from lit_attr.models.loading import (
    DEMO_MODEL,
    Dtype,
    Quantization,
    accept,
    find_language_model,
    float32_by_default,
    is_placed,
    is_spread,
    load_model,
    model_identity,
    warn_once,
)
from lit_attr.models.location import Location, locate, max_positions, token_embedding
from lit_attr.trainers import check_trainer


class AttributionModule(pl.LightningModule):
    """Contrastive gradient × activation of a causal language model's MLPs, as a prediction module.

    `predict_step` takes a `ContrastBatch` from any loader and returns an `AttributionBatch` on the CPU. The model
    is loaded when the Trainer asks for it, frozen while it is used, and never trained. It keeps its own number
    format, whatever the Trainer's `precision`.

    Args:
        model_name: Hub name or local folder of a causal language model, or of a PEFT adapter of one. Default: the
            demo model of this package.
        model: A loaded model, in place of a name; PEFT may have wrapped it.
        tokenizer: The tokenizer of `model`, or its name or folder, for a data module that has none of its own.
            Default: what the model's name says.
        revision: Branch, tag or commit of the model on the hub.
        layers: Which layers to attribute to: `all`, one index, or a list; negative indices count from the top.
        component: `mlp`, `attention`, `block`, or a dotted module path with `{layer}` in it.
        self_test: Test on loading that what is read at these modules is what they add to the residual stream, and
            look for it elsewhere where it is not. Only where a model cannot pass should this be false.
        step: Where the two answers are told apart: `divergence`, the first token that differs, or `all`, every
            token they can be compared at. A data module without a step of its own follows it.
        rule: How scores are computed: `gradient`, `frozen-norm`, `linearised`, `integrated`, `norm-secant`, or
            `exact`; see `lit_attr.attribution.rules.find_rule`.
        integration_steps: With the rule `integrated`, how many gradients are averaged.
        frozen_attention: With the rule `linearised`, hold the attention patterns as well.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        quantization: `8bit` or `4bit` weights by bitsandbytes. Gradients then go through dequantised weights.
        llm_int8_threshold: With `8bit`, the size from which a feature goes through float16, for all rows of a
            batch if for one. With 0 none does, and a row does not depend on the others. Default: bitsandbytes' 6.
        attn_implementation: Which attention code transformers uses, such as `sdpa` or `eager`.
        device_map: Spread the model over devices as transformers does, such as `auto`; one process only.
        offload_folder: Where weights that `device_map` leaves on disk go, if transformers asks for it.
        trust_remote_code: Run code that comes with the model.
        use_safetensors: Read weights from safetensors files only. Otherwise pickled ones do as well.
    """

    def __init__(
        self,
        model_name: str | None = None,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        revision: str | None = None,
        layers: int | list[int] | Literal["all"] = "all",
        component: str = "mlp",
        self_test: bool = True,
        step: Step = "divergence",
        rule: RuleName = "gradient",
        integration_steps: int = 8,
        frozen_attention: bool = False,
        dtype: Dtype = "float32",
        quantization: Quantization | None = None,
        llm_int8_threshold: float | None = None,
        attn_implementation: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        offload_folder: str | None = None,
        trust_remote_code: bool = False,
        use_safetensors: bool = True,
    ) -> None:
        super().__init__()
        loading = {
            "model_name": model_name,
            "revision": revision,
            "quantization": quantization,
            "llm_int8_threshold": llm_int8_threshold,
            "attn_implementation": attn_implementation,
            "device_map": device_map,
            "offload_folder": offload_folder,
        }
        if model is not None and (given := [name for name, value in loading.items() if value is not None]):
            raise UserError(f"model.{given[0]}: is for a model that is loaded here, and a model object was given")
        # Not for the loggers: what TensorBoard's HParams tab is told first stays; the writer tells it the numbers.
        self.save_hyperparameters(ignore=["model", "tokenizer"], logger=False)
        if model_name == "":
            raise UserError("model.model_name: it is empty; leave it out for the demo model")
        # A model object made in memory may have no name.
        object_name = str(getattr(model, "name_or_path", "")) if model is not None else DEMO_MODEL
        self.model_name = object_name if model_name is None else model_name
        self.tokenizer: PreTrainedTokenizerBase | str | None = tokenizer or self.model_name or None
        self.revision = revision
        self.layers: Sequence[int] | int | str = layers
        self.component = component
        self.self_test = self_test
        self.step: Step = step
        self.rule: RuleName = rule
        self.integration_steps = integration_steps
        self.frozen_attention = frozen_attention
        self.dtype_name: Dtype = dtype
        self.quantization: Quantization | None = quantization
        self.llm_int8_threshold = llm_int8_threshold
        self.attn_implementation = attn_implementation
        self.device_map = device_map
        self.offload_folder = offload_folder
        self.trust_remote_code = trust_remote_code
        self.use_safetensors = use_safetensors
        self.location: Location | None = None
        self._rule: Rule = GRADIENT
        self._too_many_tokens: float = math.inf
        self._home: torch.device | None = None
        self.language_model: PreTrainedModel | None = None
        if model is not None:
            # PEFT's wrappers hand what they are asked for on to the model inside.
            given_model = cast(PreTrainedModel, model)
            accept(given_model)
            self._hold(given_model)

    @classmethod
    def from_lightning(
        cls,
        module: nn.Module,
        attribute: str | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        **settings: Any,
    ) -> AttributionModule:
        """Attributes the language model that is part of another module, with the weights it has when it is used.

        The other module is afterwards as it was: gradients, `requires_grad`, modes, hooks and devices. Only a run
        that fails leaves the language model on the CPU, as Lightning leaves every model then.

        Args:
            module: The other module. A language model that its `configure_model` makes has to be there already.
            attribute: Path of the attribute that holds the language model, such as `student` or `net.decoder`.
                Default: the one `transformers.PreTrainedModel` in the module; PEFT may have wrapped it.
            tokenizer: Of the language model. Default: the module's attribute `tokenizer`, else what the language
                model's name says.
            settings: Others of `AttributionModule`, such as `layers`, `component` and `rule`.

        Raises:
            UserError: There is not just one language model, or the tokenizer is none of transformers.
        """
        tokenizer = getattr(module, "tokenizer", None) if tokenizer is None else tokenizer
        if tokenizer is not None and not isinstance(tokenizer, (PreTrainedTokenizerBase, str)):
            raise UserError(
                f"tokenizer: {type(tokenizer).__name__} is none of transformers; give one, or its name"
            )
        return cls(
            model=find_language_model(module, attribute, setting="attribute"), tokenizer=tokenizer, **settings
        )

    def setup(self, stage: str) -> None:
        """Remembers where the model is: a Trainer takes it to its own device, and in the end to the CPU."""
        if self._home is not None:
            # An earlier run has failed.
            self.location = None
        if self.language_model is not None and not is_placed(self.language_model):
            self._home = next(self.language_model.parameters()).device

    def teardown(self, stage: str) -> None:
        """Puts the model back. Where its modules are is found anew in a next run: it may be trained until then."""
        if self._home is not None:
            self.to(self._home)
        self.location, self._home = None, None

    def on_predict_model_eval(self) -> None:
        """Leaves all modes as they are: scores are computed in eval mode in any case."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leaves gradients alone: a Trainer takes them away before each run, and they are another module's."""

    def configure_model(self) -> None:
        """Loads the model, once, and finds the modules to attribute to.

        Raises:
            UserError: The model cannot be loaded, a layer or component is not in it, or the Trainer does not suit.
        """
        trainer = self._trainer
        if trainer is not None:
            model = self.language_model
            check_trainer(trainer, spread=self.device_map is not None or (model is not None and is_spread(model)))
        if self.location is not None:
            return
        if self.language_model is None:
            self._hold(
                load_model(
                    self.model_name,
                    revision=self.revision,
                    dtype=self.dtype_name,
                    quantization=self.quantization,
                    llm_int8_threshold=self.llm_int8_threshold,
                    device_map=self.device_map,
                    offload_folder=self.offload_folder,
                    attn_implementation=self.attn_implementation,
                    trust_remote_code=self.trust_remote_code,
                    use_safetensors=self.use_safetensors,
                    device=trainer.strategy.root_device if trainer is not None else None,
                )
            )
        if not self.self_test:
            warn_once(
                "model.self_test: it was skipped, so nothing says that what is scored is what the "
                f"{self.component} adds to the residual stream"
            )
        location = locate(self._model, layers=self.layers, component=self.component, self_test=self.self_test)
        self._rule = find_rule(
            self._model,
            location,
            self.rule,
            steps=self.integration_steps,
            frozen_attention=self.frozen_attention,
        )
        self.location = location

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Loads the language model's weights from a checkpoint of whatever module it was part of.

        Lightning calls this where `Trainer.predict` is given a `ckpt_path`.

        Args:
            checkpoint: As it was read from its file. Its `state_dict` becomes this module's.

        Raises:
            UserError: The checkpoint's weights are not the model's, or the model cannot take any.
        """
        self.configure_model()
        if is_placed(self._model):
            raise UserError(
                "ckpt_path: its weights cannot go into a model that is quantised or has a device_map; leave "
                "model.quantization and model.device_map out"
            )
        load_weights(self._model, checkpoint["state_dict"], self.model_name or type(self._model).__name__)
        # What was found with other weights, and is kept of them, is found anew.
        self.location = None
        self.configure_model()
        # Lightning goes on to load it.
        checkpoint["state_dict"] = self.state_dict()

    @float32_by_default()
    def predict_step(self, batch: ContrastBatch, batch_idx: int, dataloader_idx: int = 0) -> AttributionBatch:
        """Attributes one batch.

        Args:
            batch: Contrasts, on any device.
            batch_idx: Not used; the batch carries its own ids.
            dataloader_idx: Not used.

        Raises:
            UserError: The memory does not suffice for a single row.
        """
        self.configure_model()
        assert self.location is not None
        return self._attribute(batch.to(self.input_device))

    def exact_effects_BLT(self, batch: ContrastBatch) -> Tensor:
        """What the scores estimate: see `lit_attr.attribution.exact_effects.exact_effects_BLT`; on the CPU.

        Args:
            batch: Contrasts, on any device.
        """
        self.configure_model()
        assert self.location is not None
        return exact_effects_BLT(self._model, self.location, batch.to(self.input_device)).cpu()

    def faithfulness_curves(self, batch: ContrastBatch, rankings: Sequence[Tensor]) -> Curves:
        """What rankings of cells come to: see `lit_attr.attribution.faithfulness.faithfulness_curves`.

        Args:
            batch: Contrasts, on any device.
            rankings: Scores for each, axes contrast × layer × token.
        """
        self.configure_model()
        assert self.location is not None
        return faithfulness_curves(self._model, self.location, batch.to(self.input_device), rankings)

    @property
    def input_device(self) -> torch.device:
        """Where the model takes its input. Loads the model."""
        self.configure_model()
        device = token_embedding(self._model).weight.device
        # Offloaded weights are on no device until they are used.
        return device if device.type != "meta" else self.device

    def _attribute(self, batch: ContrastBatch) -> AttributionBatch:
        """Attributes a batch, in halves where memory runs out on it or has run out on one as large."""
        assert self.location is not None
        tokens, rows = batch.token_ids_BT.numel(), len(batch.contrasts)
        if rows == 1 or tokens < self._too_many_tokens:
            try:
                return self._score(batch).to("cpu")
            except RuntimeError as error:
                if not is_oom_error(error):
                    raise
                if rows == 1:
                    raise UserError(
                        f"model: the memory does not suffice for a single row of {tokens} tokens; a smaller "
                        "model.dtype or fewer model.layers need less"
                    ) from error
            # The error, and with it the tensors of its frames, is gone here.
            garbage_collection_cuda()
            self._too_many_tokens = tokens
            warn_once("data.max_tokens: the memory does not suffice for a batch; going on with halves of it")
        first, second = batch.split()
        return self._attribute(first).join(self._attribute(second))

    def _score(self, batch: ContrastBatch) -> AttributionBatch:
        assert self.location is not None
        if self.rule == "exact":
            return ablate_batch(self._model, self.location, batch, component=self.component)
        return attribute_batch(self._model, self.location, batch, component=self.component, rule=self._rule)

    def identity(self) -> dict[str, Any]:
        """Everything about the model and the scores that changes a number, in JSON types."""
        self.configure_model()
        assert self.location is not None
        return {
            # Where the demo model is installed says nothing about it.
            "model_name": self.model_name if self.model_name != DEMO_MODEL else "demo",
            "revision": self.revision,
            **model_identity(self._model),
            "layers": list(self.location.layers),
            "component": self.component,
            "module": self.location.template,
            "self_test": self.self_test,
            "rule": self.rule,
            "integration_steps": self.integration_steps if self.rule == "integrated" else None,
            "frozen_attention": self.frozen_attention if self.rule == "linearised" else None,
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
        return len(token_embedding(self._model).weight)

    @property
    def _model(self) -> PreTrainedModel:
        assert self.language_model is not None
        return self.language_model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves the model, but leaves its number format; `to`, `half` and the like call this."""

        def move(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]

    def _hold(self, model: PreTrainedModel) -> None:
        if is_placed(model):
            # Not as a submodule: Lightning would move it from where its own loader has put it.
            object.__setattr__(self, "language_model", model)
        else:
            self.language_model = model
