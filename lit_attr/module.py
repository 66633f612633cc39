"""The Lightning module: loads a model and attributes each batch."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.catalogue import AblationName, AblationOptions, RuleName, RuleOptions, find_rule
from lit_attr.attribution.neurons import find_neurons
from lit_attr.attribution.passes import Answers, answer_batch
from lit_attr.attribution.results import AttributionBatch
from lit_attr.attribution.scoring import Scoring, check_window, score_batch
from lit_attr.datamodule import DataRequirements
from lit_attr.errors import ArgumentError, arguments_of, warn_about
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Step
from lit_attr.held_model import HoldsModel
from lit_attr.models.identity import gguf_digest, model_identity
from lit_attr.models.language_model import check_model, find_language_model, is_placed, is_spread
from lit_attr.models.layers import Layers
from lit_attr.models.limits import model_limits, read_limits
from lit_attr.models.loading import DEMO_MODEL, Dtype, Quantization, float32_by_default
from lit_attr.models.location import input_device, locate, named_components
from lit_attr.models.transfer import copied
from lit_attr.models.weights.checkpoints import load_weights
from lit_attr.records.screening import Only
from lit_attr.sampling.ablations import SettledAblation, check_ablation_options
from lit_attr.sampling.comparisons import FirstSeen, Scorer, compare_or_replace, compare_or_warn
from lit_attr.sampling.memory import Halving
from lit_attr.sampling.pilot import Adaptive, check_targets, promised
from lit_attr.settings import RENAMED, LoadingOptions, arguments_of_passes, check_settings, refuse_loading_options
from lit_attr.trainers import check_trainer, run_state, shares_model, warn_of_other_lightning


class AttributionModule(HoldsModel):
    """Contrastive gradient × activation of a causal language model's MLPs, as a prediction module.

    `predict_step` takes a `ContrastBatch` from any loader and returns an `AttributionBatch`. The model is loaded
    when the Trainer asks for it, frozen while it is used, and never trained. It keeps its own number format,
    whatever the Trainer's `precision`.

    The first settings are those that most runs choose; `rule_options` and `loading` hold the others.

    Args:
        model_name: Hub name or local folder of a causal language model or of a PEFT adapter, or a GGUF file.
            Default: the demo model of this package.
        gguf_file: Name of a GGUF file in that folder or repository. Its weights are dequantised.
        layers: Layers to attribute to: `all`, an index, or several: `4-8`, `0:12:2`, a list; -1 is the top one.
        component: `mlp`, `attention`, `block`, or a dotted module path with `{layer}` in it; or several, which
            one pass scores together.
        rule: How scores are computed: `gradient`, `frozen-norm`, `linearised`, `integrated`, `norm-secant`, or
            `exact`. `lit_attr.attribution.catalogue` describes them.
        ablation: What takes the place of a write: `zero`, `mean` (its mean over contrasts), or `resample` (the
            write in another fact's run). Exact effects replace the write by it, and scores subtract it.
        top_neurons: How many hidden units of the MLPs with the largest scores each record lists. Default: none.
        only: Which contrasts are attributed: `all`, `known` (the true answer is the likeliest token), or
            `preferred` (it is above the false one). One forward pass finds them.
        verify: Number of contrasts whose exact effects are computed as well, to report how well scores agree. One
            costs as much as the scores of a few dozen; 0 disables it. They are the first in a random order of the
            run; where a loader knows no such order, the first that each process sees.
        min_agreement: Compute cells exactly until the predicted correlation with the exact effects is this, such
            as 0.95. It is over all cells. Default: none.
        min_agreement_by_layer: The same in each layer; null for no such promise. It has no effect without
            `min_agreement`.
        pilot: Number of random contrasts whose exact effects show what `min_agreement` needs. They come first;
            those of `verify` are others.
        max_cost: Bounds the expected work of `min_agreement`, in passes of the plain gradient.
        window: For the contrasts of `verify`, compute the effects of so many consecutive layers together as well.
        sample_seed: Seed of the run's random order.
        step: Where the answers are compared: `divergence` (at the first token that differs) or `all` (at every
            token that both have). A data module without a step of its own follows it.
        dtype: Number format of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.
        quantization: `8bit` or `4bit` weights by bitsandbytes. Gradients then pass through dequantised weights.
        device_map: Spread the model over devices as transformers does, such as `auto`; one process only.
        rule_options: Options of single rules.
        ablation_options: Options of single ablations.
        loading: Options of loading.
        model: A loaded model in place of a name; it may be wrapped by PEFT.
        tokenizer: The tokenizer of `model`, or its name or folder, for a data module without one. Default: the one
            that the model's name refers to.
    """

    def __init__(
        self,
        model_name: str | None = None,
        gguf_file: str | None = None,
        layers: list[int | str] | str | int = "all",
        component: str | list[str] = "mlp",
        rule: RuleName = "gradient",
        ablation: AblationName = "zero",
        top_neurons: int | None = None,
        only: Only = "all",
        verify: int = 16,
        min_agreement: float | None = None,
        min_agreement_by_layer: float | None = 0.8,
        pilot: int = 16,
        max_cost: float | None = None,
        window: int | None = None,
        sample_seed: int = 0,
        step: Step = "divergence",
        dtype: Dtype = "float32",
        quantization: Quantization | None = None,
        device_map: str | dict[str, Any] | None = None,
        rule_options: RuleOptions = RuleOptions(),
        ablation_options: AblationOptions = AblationOptions(),
        loading: LoadingOptions = LoadingOptions(),
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
    ) -> None:
        super().__init__()
        warn_of_other_lightning()
        if model is not None:
            refuse_loading_options(
                loading,
                model_name=model_name,
                gguf_file=gguf_file,
                quantization=quantization,
                device_map=device_map,
            )
        if model_name == "":
            raise ArgumentError("model_name", "it is empty; leave it out for the demo model", "model")
        with arguments_of("model", RENAMED):
            words = {"rule": rule, "ablation": ablation, "only": only, "step": step, "dtype": dtype}
            check_settings(layers, component, verify, words)
            check_ablation_options(ablation, ablation_options)
            targets = check_targets(min_agreement, min_agreement_by_layer, pilot, max_cost, rule=rule)
        # Not for the loggers: TensorBoard's HParams tab keeps what it is given first, which has to be the
        # writer's.
        self.save_hyperparameters(ignore=["model", "tokenizer"], logger=False)
        # A model object made in memory may have no name.
        object_name = str(getattr(model, "name_or_path", "")) if model is not None else DEMO_MODEL
        self.model_name = object_name if model_name is None else model_name
        self.tokenizer: PreTrainedTokenizerBase | str | None = tokenizer or self.model_name or None
        self.gguf_file = gguf_file
        self.layers: Layers = layers
        self.components = named_components(component)
        self.rule: RuleName = rule
        self.ablation: AblationName = ablation
        self.top_neurons, self.only, self.window = top_neurons, only, window
        self.verify, self.sample_seed = verify, sample_seed
        self._promise = promised(min_agreement, min_agreement_by_layer, pilot, max_cost)
        self._pilot = pilot if targets is not None else 0
        self.step: Step = step
        self.dtype_name: Dtype = dtype
        self.quantization: Quantization | None = quantization
        self.device_map = device_map
        self.rule_options, self.loading = rule_options, loading
        self._scoring = Scoring()
        self._ablation = SettledAblation(ablation, ablation_options)
        self._first_seen: FirstSeen | None = None
        self._adaptive = None if targets is None else Adaptive(targets)
        self._halving = Halving()
        if model is not None:
            # PEFT's wrappers pass attribute access on to the model inside.
            given_model = cast(PreTrainedModel, model)
            with arguments_of("model", RENAMED):
                check_model(given_model)
            self._hold(given_model)

    @classmethod
    def from_lightning(
        cls,
        module: nn.Module,
        attribute: str | None = None,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        **settings: Any,
    ) -> AttributionModule:
        """Attributes the language model that is part of another module, with its weights at the time of use.

        The other module is left as it was: gradients, `requires_grad`, modes, hooks and devices. Only a run that
        fails leaves the language model on the CPU, as Lightning leaves every model then.

        Args:
            module: The other module. A language model that its `configure_model` creates has to exist already.
            attribute: Path of the attribute that holds the language model, such as `student` or `net.decoder`.
                Default: the one `transformers.PreTrainedModel` in the module; it may be wrapped by PEFT.
            tokenizer: Tokenizer of the language model. Default: the module's attribute `tokenizer`, else the one
                that the language model's name refers to.
            settings: Other settings of `AttributionModule`, such as `layers`, `component` and `rule`.

        Raises:
            UserError: There is no language model or more than one, or the tokenizer is not one of transformers.
        """
        tokenizer = getattr(module, "tokenizer", None) if tokenizer is None else tokenizer
        if tokenizer is not None and not isinstance(tokenizer, (PreTrainedTokenizerBase, str)):
            raise ArgumentError(
                "tokenizer",
                f"{type(tokenizer).__name__} is not a tokenizer of transformers; give one, or its name",
            )
        return cls(model=find_language_model(module, attribute), tokenizer=tokenizer, **settings)

    def data_requirements(self) -> DataRequirements:
        """What the data module needs to know of this module. Reads the model's config, not its weights."""
        model, loading = self.language_model, self.loading
        with arguments_of("model"):
            limits = (
                model_limits(model)
                if model is not None
                else read_limits(
                    self.model_name,
                    gguf_file=self.gguf_file,
                    revision=loading.revision,
                    trust_remote_code=loading.trust_remote_code,
                )
            )
        return DataRequirements(
            self.step,
            self.tokenizer,
            self.gguf_file if self.tokenizer == self.model_name else None,
            loading.revision,
            loading.trust_remote_code,
            limits,
            self._sample_size,
            self.sample_seed,
            self._pilot,
            self.ablation,
            self._ablation.contrasts,
            self.only,
        )

    def setup(self, stage: str) -> None:
        """Begins a run: forgets what an earlier one has settled."""
        super().setup(stage)
        processes = self._trainer.world_size if self._trainer is not None else 1
        self._first_seen = FirstSeen(self._sample_size, processes)
        if self._adaptive is not None:
            self._adaptive.forget()
        self._ablation.forget()

    def configure_model(self) -> None:
        """Loads the model, once, and locates the modules to attribute to.

        Raises:
            UserError: The model cannot be loaded, it lacks a layer or the component, or the Trainer does not fit.
        """
        trainer = self._trainer
        if trainer is not None:
            model = self.language_model
            check_trainer(trainer, spread=self.device_map is not None or (model is not None and is_spread(model)))
        if self.location is not None:
            return
        with arguments_of("model", RENAMED):
            if self.language_model is None:
                self._load(
                    trainer,
                    self.model_name,
                    gguf_file=self.gguf_file,
                    dtype=self.dtype_name,
                    quantization=self.quantization,
                    device_map=self.device_map,
                    **self.loading.of_weights(),
                )
            if not self.loading.self_test:
                warn_about(
                    "self_test",
                    f"it is skipped, so nothing shows that the scored output is what the "
                    f"{' and the '.join(self.components)} adds to the residual stream",
                )
            location = locate(
                self._model, layers=self.layers, component=self.components, self_test=self.loading.self_test
            )
            rule = find_rule(
                self._model,
                location,
                self.rule,
                steps=self.rule_options.integration_steps,
                frozen_attention=self.rule_options.frozen_attention,
            )
            count = self.top_neurons
            neurons = None if count is None else find_neurons(self._model, location, count, rule=rule)
            check_window(location, self.window)
            self._scoring = Scoring(rule, top_neurons=neurons, window=self.window)
        self.location = location
        self.await_others()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Loads the language model's weights from a checkpoint of any module that contains it.

        Lightning calls this where `Trainer.predict` is given a `ckpt_path`.

        Args:
            checkpoint: The content of the checkpoint file. Its `state_dict` is replaced by this module's.

        Raises:
            UserError: The checkpoint's weights are not the model's, or the model cannot take any.
        """
        if self._trainer is not None and shares_model(self._trainer):
            raise ArgumentError("ckpt_path", "it would be loaded whole, and processes share the model; take ddp")
        self.configure_model()
        if is_placed(self._model):
            raise ArgumentError(
                "ckpt_path",
                "its weights cannot be loaded into a model that is quantised or has a device_map; leave "
                "model.quantization and model.device_map out",
            )
        load_weights(self._model, checkpoint["state_dict"], self.model_name or type(self._model).__name__)
        # What was located with other weights is located anew.
        self.location = None
        self.configure_model()
        # Lightning loads it afterwards.
        checkpoint["state_dict"] = self.state_dict()

    @float32_by_default()
    def predict_step(self, batch: ContrastBatch, batch_idx: int, dataloader_idx: int = 0) -> AttributionBatch:
        """Attributes one batch, or computes the exact effects of one contrast of the run's sample.

        Args:
            batch: Contrasts, on any device.
            batch_idx: Unused; the batch carries its own ids.
            dataloader_idx: Unused.

        Returns:
            The scores of the batch on the model's device; none for a batch that is a comparison. In `exact`, on
            the CPU, the exact effects of its contrasts that are in the run's sample.

        Raises:
            UserError: The memory does not suffice for a single row.
        """
        device, compare = self.input_device, partial(compare_or_warn, self._scorer)
        if batch.comparison is not None:
            if batch.is_pilot and self._adaptive is not None:
                with arguments_of_passes():
                    return self._adaptive.attribute_pilot(self._scorer, batch.to(device), self._trainer)
            (contrast,), (place,) = batch.contrasts, batch.places or (None,)
            exact = compare_or_replace(contrast, place, compare, run_state(self._trainer))
            return AttributionBatch.empty(self._location, self.rule)._replace(exact=exact)
        with arguments_of_passes():
            scored = self._halving.attribute(batch.to(device), self._attribute, is_shared=self._shared is not None)
        if batch.places is not None or self._first_seen is None:
            return scored
        exact = self._first_seen.compare(batch.contrasts, compare, run_state(self._trainer))
        return scored._replace(exact=exact)

    def answers(self, batch: ContrastBatch) -> Answers:
        """The model's answers to contrasts, without attribution.

        Args:
            batch: Contrasts, on any device.

        Returns:
            On the CPU.
        """
        device = self.input_device
        with arguments_of_passes():
            found = answer_batch(self._model, self._location, batch.to(device))
        return Answers(*copied(found, "cpu"))

    @property
    def input_device(self) -> torch.device:
        """The device on which the model takes its input. Loads the model."""
        self.configure_model()
        return input_device(self._model)

    def identity(self) -> dict[str, Any]:
        """Everything about the model and the scores that changes a number, in JSON types. Loads the model."""
        self.configure_model()
        return {
            # The demo model's path depends on where the package is installed.
            "model_name": self.model_name if self.model_name != DEMO_MODEL else "demo",
            "gguf_file": self.gguf_file,
            "gguf": gguf_digest(self.model_name, self.gguf_file, self.loading.revision),
            "revision": self.loading.revision,
            **model_identity(self._model),
            "layers": [*dict.fromkeys(self._location.layers)],
            "component": ", ".join(self.components),
            "module": self._location.template,
            "self_test": self.loading.self_test,
            "rule": self.rule,
            "integration_steps": self.rule_options.integration_steps if self.rule == "integrated" else None,
            "frozen_attention": self.rule_options.frozen_attention if self.rule == "linearised" else None,
            "ablation": self.ablation,
            **self._ablation.identity(),
            "top_neurons": self.top_neurons,
            "only": self.only,
            "window": self.window,
            **self._promise,
            "sample_seed": self.sample_seed,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }

    def _attribute(self, batch: ContrastBatch) -> AttributionBatch:
        scorer = self._scorer
        if self._adaptive is not None:
            return self._adaptive.attribute(scorer, batch, self._trainer)
        return score_batch(*scorer[:2], batch, scorer.scoring)

    @property
    def _sample_size(self) -> int:
        # The scores of `exact` are the exact effects.
        return 0 if self.rule == "exact" else self.verify

    @property
    def _scorer(self) -> Scorer:
        with arguments_of("model", RENAMED):
            ablation = self._ablation.settle(self._model, self._location, self._trainer)
        return Scorer(self._model, self._location, self._scoring._replace(ablation=ablation))
