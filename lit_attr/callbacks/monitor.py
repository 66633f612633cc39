"""The callback that watches a language model's facts while it is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_attr.attribution.gradient import attribute_batch
from lit_attr.datamodule import CounterfactDataModule, default_max_tokens, in_batches
from lit_attr.errors import UserError, told_of
from lit_attr.evaluation.summary import RunSummary, strongest_cells
from lit_attr.facts.contrasts import Contrast, collate_contrasts
from lit_attr.facts.sources import SAMPLE
from lit_attr.models.loading import find_language_model, warn_once
from lit_attr.models.location import Location, locate, token_embedding
from lit_attr.records.encoding import batch_record, split_finite
from lit_attr.views.pictures import fact_image, profile_image, safe_tag, show_image, takes_images

# What the settings of those who do the work are called here.
RENAMED = {"source": "facts", "model_name": "model", "dtype": "model"}


class _Plan(NamedTuple):
    """What this process does in every pass; the facts of the first `drawn` batches have heatmaps."""

    language_model: PreTrainedModel
    location: Location
    batches: list[list[Contrast]]
    drawn: int


class AttributionMonitor(pl.Callback):
    """Attributes the same facts again and again while a model is trained, with its weights as they are.

    A pass is made when training starts, every `every_n_steps` optimizer steps, and after validation, that of
    `Trainer.validate` included and the sanity check left out. It is logged at the Trainer's `global_step`, the
    optimizer steps taken so far. Every logger gets, under `attribution/`,

    - `contrasts`: how many facts were counted; one with a number that is not finite is left out,
    - `logit_difference`: mean of logit_true − logit_false, in logits,
    - `contrast_accuracy`, `known_share`: shares with the true answer above the false one, and above all tokens,
    - `score/ROLE`, `layer/ROLE`: at a token role, the mean score of largest magnitude, in logits, and its layer.

    A `TensorBoardLogger` gets pictures as well, `role_by_layer` and `facts/ID`.

    Training is what it is without the monitor, to the bit: gradients, random numbers, modes, hooks and
    `requires_grad` are left as they are found. Of several processes each attributes its share of the facts, the
    first one those with heatmaps among them, and the counts are added up: all have to take the same steps.
    A mistake in a setting or in the facts is a `UserError`, before the first step.

    Args:
        facts: As `source` of `CounterfactDataModule`: `sample`, a file, a hub name, or rows.
        tokenizer: A fast tokenizer, or the name or folder of one. Default: the attribute `tokenizer` of the
            module, else of the data module, else what the language model's name says.
        model: Path of the attribute that holds the language model, such as `student` or `net.decoder`. Default:
            the one `transformers.PreTrainedModel` in the module.
        layers: `all`, one index, or a list; negative indices count from the top.
        component: `mlp`, `attention`, `block`, or a dotted path from the language model with `{layer}` in it.
        every_n_steps: Optimizer steps from one pass to the next. Default: passes after validation only.
        at_validation_end: Whether a pass is made after validation.
        limit: Take only so many of the rows, the first.
        max_heatmaps: How many facts, spread over the rows, get a heatmap in each pass.
        max_tokens: Tokens of a batch with its padding, at most. Default: 1,024 on a CPU and 4,096 elsewhere.
    """

    def __init__(
        self,
        facts: str | os.PathLike[str] | Iterable[Mapping[str, Any]] = SAMPLE,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        model: str | None = None,
        layers: int | list[int] | Literal["all"] = "all",
        component: str = "mlp",
        every_n_steps: int | None = None,
        at_validation_end: bool = True,
        limit: int | None = None,
        max_heatmaps: int = 4,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"AttributionMonitor.every_n_steps: {every_n_steps} is less than 1")
        with _apart_from_training():
            self._data = CounterfactDataModule(facts, step="divergence", limit=limit, max_tokens=max_tokens)
        self.tokenizer = tokenizer
        self.model = model
        self.layers, self.component = layers, component
        self.every_n_steps, self.at_validation_end = every_n_steps, at_validation_end
        self.max_heatmaps = max_heatmaps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier run, whose model may have been another."""
        self._plan: _Plan | None = None
        self._step_seen, self._step_attributed = 0, -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes everything ready, and refuses what cannot work."""
        if self.every_n_steps is None and not (self.at_validation_end and trainer.enable_validation):
            raise UserError("AttributionMonitor.every_n_steps: there is no validation to attribute after; set it")
        self._open(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes everything ready where nothing is trained."""
        self._open(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The pass before the first step."""
        self._step_seen = trainer.global_step
        self._attribute(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The pass that is due every so many steps."""
        before, self._step_seen = self._step_seen, trainer.global_step
        # Several optimizers take several steps at once, and a batch whose gradients are only kept takes none.
        if self.every_n_steps is not None and self._step_seen // self.every_n_steps > before // self.every_n_steps:
            self._attribute(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The pass after validation."""
        if self.at_validation_end and not trainer.sanity_checking:
            self._attribute(trainer, pl_module)

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> _Plan:
        if self._plan is not None:
            return self._plan
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise UserError("trainer.strategy: AttributionMonitor needs weights whole; take ddp or leave it out")
        data = self._data
        language_model = find_language_model(pl_module, self.model, setting="AttributionMonitor.model")
        # The user's own attributes, of which none need be there; a model made in memory has an empty name.
        owners = (self, pl_module, getattr(trainer, "datamodule", None))
        named = (getattr(owner, "tokenizer", None) for owner in owners)
        tokenizer = next((each for each in named if each is not None), language_model.name_or_path)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) and not (isinstance(tokenizer, str) and tokenizer):
            raise UserError("AttributionMonitor.tokenizer: there is none of transformers; name one")
        with _apart_from_training():
            data.tokenizer = tokenizer
            data.setup()
            location = locate(language_model, layers=self.layers, component=self.component)
        if data.rejected:
            first, count = data.rejected[0], len(data.rejected)
            warn_once(f"AttributionMonitor.facts: {count} rows left out; row {first.row}: {first.reason}")
        contrasts, heatmaps = data.contrasts, min(self.max_heatmaps, len(data.contrasts))
        places = {place * len(contrasts) // heatmaps for place in range(heatmaps)}
        most = data.max_tokens or default_max_tokens(trainer.strategy.root_device)
        # Loggers are in the first process alone, so it has the facts that are drawn, and is dealt to last.
        rank, world_size = trainer.global_rank, trainer.world_size
        drawn = in_batches([contrasts[place] for place in sorted(places)], max_tokens=most) if rank == 0 else []
        others = [each for place, each in enumerate(contrasts) if place not in places]
        batches = drawn + in_batches(others, max_tokens=most)[(rank - 1) % world_size :: world_size]
        self._plan = _Plan(language_model, location, batches, len(drawn) if takes_images(trainer) else 0)
        return self._plan

    def _attribute(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One pass over the facts. Every process comes here, at the same step."""
        step = trainer.global_step
        if step == self._step_attributed:
            return
        self._step_attributed = step
        model, location, batches, drawn = self._open(trainer, pl_module)
        with _apart_from_training():
            summary, total = (
                RunSummary(location.layers, self.component, "gradient"),
                torch.zeros((), dtype=torch.float64),
            )
            for place, contrasts in enumerate(batches):
                batch = collate_contrasts(contrasts).to(token_embedding(model).weight.device)
                scored = attribute_batch(model, location, batch, component=self.component)
                finite, _ = split_finite(scored.to("cpu"))
                if not finite.contrasts:
                    continue
                summary.add_batch(finite)
                total += (finite.logit_true_B - finite.logit_false_B).double().sum()
                for example in batch_record(finite)["examples"] if place < drawn else ():
                    image = fact_image(example, finite.layers, finite.component, finite.rule)
                    show_image(trainer, f"attribution/facts/{safe_tag(example['id'])}", image, step)
            self._log(trainer, summary, total, step)

    def _log(self, trainer: pl.Trainer, summary: RunSummary, total: Tensor, step: int) -> None:
        if trainer.world_size > 1:
            summary.to(trainer.strategy.root_device)
            total = trainer.strategy.reduce(total.to(trainer.strategy.root_device), reduce_op="sum")
        found = summary.compute()
        if not trainer.is_global_zero:
            return
        values = {"contrasts": float(found["contrasts"])}
        if found["contrasts"]:
            values |= {name: found[name] for name in ("contrast_accuracy", "known_share")}
            values["logit_difference"] = float(total) / found["contrasts"]
            for role, ((score, layer, _), *_) in strongest_cells(found["profile"], 1).items():
                values |= {f"score/{safe_tag(role)}": score, f"layer/{safe_tag(role)}": float(layer)}
            words = f"{found['contrasts']} contrasts · true answer preferred in {found['contrast_accuracy']:.1%}"
            show_image(
                trainer,
                "attribution/role_by_layer",
                profile_image(found["profile"], f"step {step} · {words}"),
                step,
            )
        for logger in trainer.loggers:
            logger.log_metrics({f"attribution/{name}": value for name, value in values.items()}, step)


@contextmanager
def _apart_from_training() -> Iterator[None]:
    """Leaves training's random numbers as they are; tells a mistake by the monitor's name of the setting."""
    # Validation may be in inference mode, and what a model keeps from then on could never have a gradient.
    # A GPU that nothing has used yet must stay so, or processes could not be forked.
    randomness = isolate_rng(include_cuda=torch.cuda.is_initialized())
    with randomness, torch.inference_mode(False), told_of("AttributionMonitor", RENAMED):
        yield
