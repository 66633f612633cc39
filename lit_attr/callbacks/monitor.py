"""The callback that attributes facts while a language model is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.ablation import RESAMPLE, ZERO
from lit_attr.attribution.catalogue import RuleName, RuleOptions, find_rule
from lit_attr.attribution.scoring import Scoring, score_batch
from lit_attr.callbacks.loggers import show_image, takes_images
from lit_attr.callbacks.metrics import LiveCounts
from lit_attr.datamodule import CounterfactDataModule, DataRequirements
from lit_attr.errors import ArgumentError, UserError, arguments_of, one_line, warn_about, warn_once
from lit_attr.evaluation.strongest import strongest_at
from lit_attr.facts.batches import collate_contrasts
from lit_attr.facts.contrasts import Contrast
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.language_model import find_language_model
from lit_attr.models.limits import model_limits
from lit_attr.models.location import Location, locate, token_embedding
from lit_attr.records.encoding import batch_record, split_finite
from lit_attr.records.reading import records_of
from lit_attr.text import counted, safe_name
from lit_attr.trainers import datamodule_of
from lit_attr.views.curves import by_ending, role_tag
from lit_attr.views.pictures import fact_image, profile_image

# Settings of the data module and arguments of functions to the monitor's.
RENAMED = {
    "source": "facts",
    "model_name": "model",
    "dtype": "model",
    "attribute": "model",
    "steps": "rule_options.integration_steps",
    "frozen_attention": "rule_options.frozen_attention",
}
# Mean writes would be those of other weights at the next pass.
MonitoredAblation = Literal["zero", "resample"]


class _Plan(NamedTuple):
    """What this process does in every pass.

    Attributes:
        language_model: The model.
        location: The modules that are scored.
        batches: The contrasts of this process.
        drawn: How many of the batches, from the first, have facts with heatmaps.
    """

    language_model: PreTrainedModel
    location: Location
    batches: list[list[Contrast]]
    drawn: int


class AttributionMonitor(pl.Callback):
    """Attributes the same facts repeatedly while a model is trained, with the weights of the moment.

    A pass runs when training starts, every `every_n_steps` optimizer steps, and after validation, that of
    `Trainer.validate` included and the sanity check excluded. In training it attributes the weights that the
    optimizer holds: the pass after validation waits until training continues, when callbacks that validate
    averaged weights (EMA, SWA) have restored them. It is logged at the Trainer's `global_step`, the number of
    optimizer steps so far. Every logger gets, under `attribution/`,

    - `contrasts`: the number of facts; one with a number that is not finite is left out,
    - `logit_difference`: mean of logit_true − logit_false, in logits,
    - `contrast_accuracy`, `known_share`: shares with the true answer above the false one, and above all tokens,
    - `score/ROLE`, `layer/ROLE`: at a token role, the mean score of largest magnitude, in logits, and its layer;
      position 0 is in no role, but in `score/position_0` and `layer/position_0`.

    A `TensorBoardLogger` gets pictures as well: `role_by_layer` and `facts/ID`.

    Training is the same as without the monitor, to the bit: gradients, random numbers, modes, hooks and
    `requires_grad` are left as they are. Each of several processes attributes its share of the facts, the first
    one those with heatmaps among them, and the counts are added up: all have to take the same steps. A mistake in
    a setting or in the facts is a `UserError` before the first step. After that a pass that fails is left out by
    all processes, with one warning, and the training continues.

    Args:
        facts: A `source` of `CounterfactDataModule`: `sample`, a file, a hub name, or rows.
        tokenizer: A fast tokenizer, or the name or folder of one. Default: the attribute `tokenizer` of the
            module, else of the data module, else the one that the language model's name refers to.
        model: Path of the attribute that holds the language model, such as `student` or `net.decoder`. Default:
            the one `transformers.PreTrainedModel` in the module.
        layers: `all`, one index, or several, such as `4-8`, `0:12:2` or a list; negative indices count from the
            top.
        component: `mlp`, `attention`, `block`, or a dotted path from the language model with `{layer}` in it; or
            several. The tags of all but the first then have the component's name: `role_by_layer_attention`.
        rule: How scores are computed, as in `AttributionModule`.
        ablation: What scores subtract from a write: `zero`, or with `resample` the write at the same token in the
            run of another fact, its donor. Facts without a donor are left out.
        every_n_steps: Optimizer steps between passes. Default: passes after validation only.
        at_validation_end: Whether a pass runs after validation.
        limit: Keep only the first so many rows.
        max_heatmaps: How many facts, spread over the rows, get a heatmap in each pass.
        max_tokens: Maximum number of tokens in a batch, padding included. Default: 1,024 on a CPU and 4,096
            elsewhere.
        rule_options: Options of single rules.
    """

    def __init__(
        self,
        facts: str | os.PathLike[str] | Iterable[Mapping[str, Any]] = SAMPLE,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        model: str | None = None,
        layers: list[int | str] | str | int = "all",
        component: str | list[str] = "mlp",
        rule: RuleName = "gradient",
        ablation: MonitoredAblation = "zero",
        every_n_steps: int | None = None,
        at_validation_end: bool = True,
        limit: int | None = None,
        max_heatmaps: int = 4,
        max_tokens: int | None = None,
        rule_options: RuleOptions = RuleOptions(),
    ) -> None:
        super().__init__()
        if ablation not in get_args(MonitoredAblation):
            raise ArgumentError("ablation", f"{ablation!r} is neither zero nor resample", "AttributionMonitor")
        if every_n_steps is not None and every_n_steps < 1:
            raise ArgumentError(
                "every_n_steps", f"{every_n_steps} is less than 1; give 1 or more", "AttributionMonitor"
            )
        with _apart_from_training():
            self._data = CounterfactDataModule(facts, step="divergence", limit=limit, max_tokens=max_tokens)
        self.tokenizer = tokenizer
        self.model = model
        self.layers, self.component = layers, component
        self.rule: RuleName = rule
        self.ablation: MonitoredAblation = ablation
        self.rule_options = rule_options
        self.every_n_steps, self.at_validation_end = every_n_steps, at_validation_end
        self.max_heatmaps = max_heatmaps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier run, whose model may have been another."""
        self._plan: _Plan | None = None
        self._step_seen, self._step_attributed = 0, -1
        self._is_due = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepares the passes, and refuses settings that cannot work."""
        if self.every_n_steps is None and not (self.at_validation_end and trainer.enable_validation):
            reason = "there is no validation to attribute after; set it"
            raise ArgumentError("every_n_steps", reason, "AttributionMonitor")
        self._open(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepares the passes where nothing is trained."""
        self._open(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the pass before the first step."""
        self._step_seen = trainer.global_step
        self._attribute(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Runs the pass that validation has made due."""
        self._attribute_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Runs the pass that is due every `every_n_steps` steps."""
        before, self._step_seen = self._step_seen, trainer.global_step
        # Several optimizers take several steps at once; a batch whose gradients are accumulated takes none.
        if self.every_n_steps is not None and self._step_seen // self.every_n_steps > before // self.every_n_steps:
            self._attribute(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the pass after validation, or makes it due where a training goes on."""
        if self.at_validation_end and not trainer.sanity_checking:
            self._is_due = True
            if trainer.state.fn != TrainerFn.FITTING:
                self._attribute_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the pass that validation at the end of the epoch has made due."""
        self._attribute_if_due(trainer, pl_module)

    def _attribute_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_due:
            self._is_due = False
            self._attribute(trainer, pl_module)

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> _Plan:
        if self._plan is not None:
            return self._plan
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise UserError("trainer.strategy: AttributionMonitor needs weights whole; take ddp or leave it out")
        with arguments_of("AttributionMonitor", RENAMED, replaces_owner=True):
            language_model = find_language_model(pl_module, self.model)
        data = self._data
        with _apart_from_training():
            data.make_contrasts(
                DataRequirements(
                    tokenizer=self._find_tokenizer(trainer, pl_module, language_model),
                    limits=model_limits(language_model),
                    ablation=self.ablation,
                )
            )
            location = locate(language_model, layers=self.layers, component=self.component)
            self._scoring(language_model, location)
            if data.rejected:
                first, count = data.rejected[0], counted(len(data.rejected), "row")
                warn_about("facts", f"{count} left out; the first, row {first.row}: {first.reason}")
        contrasts, heatmaps = data.contrasts, min(self.max_heatmaps, len(data.contrasts))
        places = {place * len(contrasts) // heatmaps for place in range(heatmaps)}
        # The first process alone has loggers, so it gets the facts that are drawn, and is dealt the others last.
        rank, world_size = trainer.global_rank, trainer.world_size
        device = trainer.strategy.root_device
        drawn = data.in_batches([contrasts[place] for place in sorted(places)], device) if rank == 0 else []
        others = [each for place, each in enumerate(contrasts) if place not in places]
        batches = drawn + data.in_batches(others, device)[(rank - 1) % world_size :: world_size]
        self._plan = _Plan(language_model, location, batches, len(drawn) if takes_images(trainer) else 0)
        return self._plan

    def _find_tokenizer(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, language_model: PreTrainedModel
    ) -> PreTrainedTokenizerBase | str:
        # Attributes of the user's own classes, which may lack them; a model made in memory has an empty name.
        owners = (pl_module, datamodule_of(trainer))
        named = (self.tokenizer, *(getattr(owner, "tokenizer", None) for owner in owners))
        tokenizer = next((each for each in named if each is not None), language_model.name_or_path)
        if isinstance(tokenizer, PreTrainedTokenizerBase) or (isinstance(tokenizer, str) and tokenizer):
            return tokenizer
        reason = "neither the module nor the data module has one of transformers; give one"
        raise ArgumentError("tokenizer", reason)

    def _scoring(self, model: PreTrainedModel, location: Location) -> Scoring:
        """How scores are computed, with the weights of the moment."""
        options = self.rule_options
        rule = find_rule(
            model,
            location,
            self.rule,
            steps=options.integration_steps,
            frozen_attention=options.frozen_attention,
        )
        return Scoring(rule, RESAMPLE if self.ablation == "resample" else ZERO)

    def _attribute(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs one pass over the facts. Every process calls it at the same step."""
        step = trainer.global_step
        if step == self._step_attributed:
            return
        self._step_attributed = step
        plan, counts, failure = self._open(trainer, pl_module), None, None
        try:
            counts = self._count(trainer, plan, step)
        except Exception as error:  # of any kind: nothing that a monitor does may end a training
            failure = error
            if is_oom_error(error):
                garbage_collection_cuda()
        # All processes leave the pass out where one has failed, or they would wait for its counts.
        if trainer.strategy.reduce_boolean_decision(failure is None) and counts is not None:
            try:
                if trainer.world_size > 1:
                    counts = counts.reduce(trainer.strategy.root_device)
                found = counts.compute()
                if trainer.is_global_zero:
                    self._log(trainer, found, step)
                return
            except Exception as error:  # such as a logger's, whose disk is full
                failure = error
        reason = one_line(failure) if failure is not None else "it failed in another process"
        warn_once(f"AttributionMonitor: a pass is left out ({reason}); the training continues")

    def _count(self, trainer: pl.Trainer, plan: _Plan, step: int) -> LiveCounts:
        """Attributes this process's facts, and shows the heatmaps among them."""
        model, location, batches, drawn = plan
        with _apart_from_training():
            scoring = self._scoring(model, location)
            counts = LiveCounts(
                [*dict.fromkeys(location.layers)], [*dict.fromkeys(location.components)], self.rule
            )
            for place, contrasts in enumerate(batches):
                batch = collate_contrasts(contrasts).to(token_embedding(model).weight.device)
                scored = score_batch(model, location, batch, scoring)
                finite, _ = split_finite(scored.to("cpu"))
                if not finite.contrasts:
                    continue
                record = batch_record(finite)
                counts.add(record)
                for example in records_of(record) if place < drawn else ():
                    image = fact_image(example)
                    show_image(trainer, f"attribution/facts/{safe_name(example['id'])}", image, step)
        return counts

    def _log(self, trainer: pl.Trainer, found: Mapping[str, Any], step: int) -> None:
        values = {"contrasts": float(found["contrasts"])}
        if found["contrasts"]:
            values |= {name: found[name] for name in ("contrast_accuracy", "known_share")}
            values["logit_difference"] = found["mean_logit_diff"]
            words = f"{found['contrasts']} contrasts · true answer preferred in {found['contrast_accuracy']:.1%}"
            for ending, of_component in by_ending(found):
                profile = of_component["profile"]
                for role in profile["roles"]:
                    for score, layer, _ in strongest_at(profile, role, 1):
                        tag = f"{ending}/{role_tag(role)}"
                        values |= {f"score{tag}": score, f"layer{tag}": float(layer)}
                image = profile_image(profile, f"step {step} · {words}")
                show_image(trainer, f"attribution/role_by_layer{ending}", image, step)
        for logger in trainer.loggers:
            logger.log_metrics({f"attribution/{name}": value for name, value in values.items()}, step)


@contextmanager
def _apart_from_training() -> Iterator[None]:
    """Leaves training's random numbers as they are, and gives errors the monitor's names of settings."""
    # Validation may be in inference mode, and what a model keeps from then on could never have a gradient.
    # A GPU that nothing has used yet must stay so, or processes could not be forked.
    randomness = isolate_rng(include_cuda=torch.cuda.is_initialized())
    with randomness, torch.inference_mode(False), arguments_of("AttributionMonitor", RENAMED, replaces_owner=True):
        yield
