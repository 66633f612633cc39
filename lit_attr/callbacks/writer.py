"""The callback that puts attributions on disk and into TensorBoard."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_attr.attribution.gradient import AttributionBatch
from lit_attr.callbacks.background import Background
from lit_attr.errors import ToldError, UserError
from lit_attr.evaluation.findings import read_findings
from lit_attr.evaluation.summary import RunSummary
from lit_attr.evaluation.verification import Points, Verification
from lit_attr.facts.contrasts import ContrastKey
from lit_attr.facts.rows import Rejected
from lit_attr.models.loading import warn_once
from lit_attr.records.encoding import batch_record, split_finite
from lit_attr.records.folder import OutputFolder
from lit_attr.views.pictures import fact_image, log_curves, log_image, log_run, log_trust, profile_image, safe_tag

BATCHES_BETWEEN_PROFILES = 50


class AttributionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, if that is an `AttributionBatch`.

    One JSON file a batch, a manifest, the refused rows, and a summary at the end. Pictures of facts, of the mean
    scores by layer and token role, and of those of the largest relations go to the Trainer's `TensorBoardLogger`,
    or to PNG files in `figures` where there is none; the mean scores as curves go to every logger. A second run of
    the same settings into the same folder does what is missing.

    Args:
        output_dir: Folder for the files.
        max_heatmaps: How many contrasts get a heatmap.
        heatmaps: Which: `spread` over the run, drawn as it goes on, or, in the end, those with the `largest`
            logit differences of either sign.
        heatmap_ids: The ids of facts that get one in the end, besides.
        verify: How many contrasts, spread over the run, have their scores compared with the exact effects of
            taking each write out. One takes as long as the scores of some dozens; 0 leaves it out.
        overwrite: Move what an earlier run left in the folder aside and start afresh. To go on with a run that was
            stopped, leave it out.
    """

    def __init__(
        self,
        output_dir: str = "lit_attr_output",
        max_heatmaps: int = 32,
        heatmaps: Literal["spread", "largest"] = "spread",
        heatmap_ids: list[int | str] | None = None,
        verify: int = 16,
        overwrite: bool = False,
    ) -> None:
        super().__init__(write_interval="batch")
        if not output_dir or (Path(output_dir).exists() and not Path(output_dir).is_dir()):
            raise UserError(f"writer.output_dir: {output_dir!r} is not a folder; give another")
        for name, value in (("max_heatmaps", max_heatmaps), ("verify", verify)):
            if value < 0:
                raise UserError(f"writer.{name}: {value} is less than 0")
        self.folder = OutputFolder(output_dir)
        self.max_heatmaps = max_heatmaps
        self.heatmaps = heatmaps
        self.heatmap_ids = frozenset(heatmap_ids or ())
        self.verify = verify
        self.overwrite = overwrite
        self._done: dict[ContrastKey, str] | None = None
        self._written: set[ContrastKey] = set()
        self._summary: RunSummary | None = None
        self._verification: Verification | None = None
        # By an earlier run; a token against itself is not counted.
        self._counted_before = 0
        self._started = 0.0
        self._background = Background()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets the data module leave out what an earlier run has done."""
        super().setup(trainer, pl_module, stage)
        self._done, self._written, self._summary, self._verification = None, set(), None, None
        self._counted_before = 0
        # Asked later: whether an earlier run is of the same settings shows only when the model is loaded.
        _let_leave_out(trainer, lambda: self._open(trainer, pl_module))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the folder, where no data module has asked for it."""
        self._open(trainer, pl_module)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Has one batch written, and its share of the heatmaps drawn, while the next is computed.

        Raises:
            UserError: `predict_step` returned something else than an `AttributionBatch`, or an earlier batch
                could not be written.
        """
        if not isinstance(prediction, AttributionBatch):
            raise UserError(
                f"trainer.callbacks: AttributionWriter writes AttributionBatch, but {type(pl_module).__name__}'s "
                f"predict_step returns {type(prediction).__name__}"
            )
        summary = self._summarise(prediction.layers, prediction.component, prediction.rule)
        left = self._without_done(prediction)
        if not left.contrasts:
            return
        finite, rejected = split_finite(left)
        if rejected:
            self.folder.add_rejected(rejected)
        if not finite.contrasts:
            return
        self._refuse_repeated(finite)
        summary.add_batch(finite)
        worth_it = [row for row, contrast in enumerate(finite.contrasts) if contrast.told_apart]
        place = batch_idx, trainer.num_predict_batches[dataloader_idx]
        drawn = self.max_heatmaps if trainer.is_global_zero and self.heatmaps == "spread" else 0
        to_draw = [worth_it[row] for row in _share(drawn, len(worth_it), *place)]
        self._background.do(lambda: self._write(trainer, finite, to_draw))
        if finite.rule != "exact" and hasattr(pl_module, "exact_effects_BLT"):
            mine = _spread(self.verify, trainer.global_rank, trainer.world_size)
            to_verify = [worth_it[row] for row in _share(mine, len(worth_it), *place)]
            if to_verify:
                self._compare(pl_module, finite.select(to_verify))
        if trainer.is_global_zero and (batch_idx + 1) % BATCHES_BETWEEN_PROFILES == 0:
            so_far = summary.compute(together=False)
            self._background.do(lambda: self._log_profile(trainer, so_far))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leaves the folder to a run that goes on from here."""
        _let_leave_out(trainer, None)
        try:
            self._background.finish()
        finally:
            self.folder.unlock()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the summary. Every process comes here, also one that had nothing to do, unless the run failed."""
        _let_leave_out(trainer, None)
        if stage != "predict":
            return
        # A process whose loader has nothing for it is not asked before.
        self._open(trainer, pl_module)
        self._background.finish()
        # Without a time limit, as a collective has: one process may have far more to do than another.
        self.folder.finish()
        # A process without a batch does not know the layers.
        found = self._summary
        mine = (found.layers, found.component, found.rule) if found is not None else None
        shapes = [trainer.strategy.broadcast(mine, src=rank) for rank in range(trainer.world_size)]
        shape = next((shape for shape in shapes if shape is not None), None)
        if shape is not None:
            summary = self._summarise(*shape)
            if trainer.world_size > 1:
                summary.to(trainer.strategy.root_device)
            record = summary.compute()
            record["trust"], points = self._verified(trainer, summary.layers)
            if trainer.is_global_zero:
                self._finish(trainer, record, points, resumed=len(self._done or ()))
        self.folder.unlock()

    def _verified(self, trainer: pl.Trainer, layers: Sequence[int]) -> tuple[dict[str, Any] | None, list[Points]]:
        """The report on what all processes have compared, and the cells. Every process must ask."""
        verification = self._verification or Verification(layers)
        if trainer.world_size > 1:
            verification.to(trainer.strategy.root_device)
        shares = (trainer.strategy.broadcast(verification.points, src=rank) for rank in range(trainer.world_size))
        return verification.compute(), [points for share in shares for points in share]

    def _compare(self, module: Any, batch: AttributionBatch) -> None:
        """Compares scores with exact effects."""
        self._verification = self._verification or Verification(batch.layers)
        try:
            self._verification.compare(module, batch)
        except Exception as error:  # whatever: the scores are there, and the run goes on without their comparison
            reason = " ".join(str(error).split())[:200]
            warn_once(f"writer.verify: there are no exact effects of this model ({reason}); 0 leaves them out")

    def _write(self, trainer: pl.Trainer, batch: AttributionBatch, rows_to_draw: Iterable[int]) -> None:
        record = batch_record(batch)
        self.folder.write_batch(batch.contrasts[0], record)
        for row in rows_to_draw:
            self._log_fact(trainer, record, record["examples"][row])

    def _log_fact(self, trainer: pl.Trainer, record: Mapping[str, Any], example: Mapping[str, Any]) -> None:
        tag = f"facts/{safe_tag(example['id'])}-{example['step']}"
        image = fact_image(example, tuple(record["layers"]), record["component"], record["rule"])
        log_image(trainer, self.folder.figures, tag, image)

    def _log_profile(self, trainer: pl.Trainer, summary: Mapping[str, Any]) -> None:
        """The pictures of the mean scores, of all contrasts and of known facts."""
        step = summary["contrasts"]
        words = f"{step} contrasts"
        if step:
            words += f" · true answer preferred in {summary['contrast_accuracy']:.1%}"
            image = profile_image(summary["profile"], words)
            log_image(trainer, self.folder.figures, "profile/role_by_layer", image, step)
        if summary["known"]:
            image = profile_image(summary["known_profile"], f"{summary['known']} contrasts of known facts")
            log_image(trainer, self.folder.figures, "profile/role_by_layer_known", image, step)

    def _finish(
        self, trainer: pl.Trainer, summary: dict[str, Any], points: Sequence[Points], *, resumed: int
    ) -> None:
        summary["rejected"] = self.folder.count_rejected()
        summary["resumed"] = resumed
        earlier = self.folder.read_summary()
        if "median_logit_diff" in earlier:
            summary["median_logit_diff"] = earlier["median_logit_diff"]
        if (trust := earlier.get("trust")) is not None and (
            summary["trust"] is None or summary["trust"]["contrasts"] < trust["contrasts"]
        ):
            # The earlier run has compared more.
            summary["trust"], points = trust, ()
        # Whatever becomes of the pictures.
        self.folder.write_summary({**summary, "seconds": time.perf_counter() - self._started})
        # An earlier run has shown all that where this one had nothing left to do.
        if summary["contrasts"] > self._counted_before:
            self._show(trainer, summary, points)
        summary["seconds"] = time.perf_counter() - self._started
        self.folder.write_summary(summary)

    def _show(self, trainer: pl.Trainer, summary: dict[str, Any], points: Sequence[Points]) -> None:
        largest = self.max_heatmaps if self.heatmaps == "largest" else 0
        findings = read_findings(self.folder, ids=self.heatmap_ids, largest=largest)
        summary["median_logit_diff"] = findings.median_logit_diff
        self._log_profile(trainer, summary)
        for example in (*findings.asked_for, *findings.largest):
            self._log_fact(trainer, summary["profile"], example)
        for relation, profile in findings.relations.items():
            image = profile_image(profile, f"relation {relation} · {max(profile['contrasts'])} contrasts")
            log_image(trainer, self.folder.figures, f"relations/{safe_tag(relation)}", image)
        log_curves(trainer, summary["profile"], "mean_score")
        log_curves(trainer, summary["known_profile"], "mean_score_known")
        if summary["trust"] is not None:
            log_trust(trainer, self.folder.figures, summary, points)
        log_run(trainer, summary, self.folder.read_manifest(), findings)

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Collection[ContrastKey]:
        """Makes the folder ready, once, and tells what is done in it. Every process must ask."""
        if self._done is not None:
            return self._done
        # One process looks and the others are told: what one of them wrote meanwhile would look done to the next.
        # They are told of a failure as well, or they would wait for ever.
        settings: dict[str, Any] = {}
        told: tuple[str, dict[ContrastKey, str], dict[str, Any]] | str = ""
        failure: Exception | None = None
        try:
            settings = {"model": _identity(pl_module), "data": _identity(_datamodule(trainer))}
            if trainer.is_global_zero:
                run = self.folder.lock()
                told = run, self._go_on(settings, getattr(_datamodule(trainer), "rejected", ())), settings
        except Exception as error:
            failure, told = error, str(error)
        told = trainer.strategy.broadcast(told)
        if failure is not None:
            raise failure
        if isinstance(told, str):
            raise ToldError(told)
        run, done, expected = told
        if settings != expected:
            raise UserError(
                f"data.source: process {trainer.global_rank} has other rows or another model than the first one; "
                "give every process the same"
            )
        if not trainer.is_global_zero:
            self.folder.join(run, trainer.global_rank)
        trainer.strategy.barrier()
        self.folder.expect(trainer.world_size)
        self._done = done
        self._started = time.perf_counter()
        return self._done

    def _go_on(
        self, settings: Mapping[str, Mapping[str, Any]], rejected: Iterable[Rejected]
    ) -> dict[ContrastKey, str]:
        """Opens the folder; what an earlier run of the same settings has done in it is counted."""
        done: dict[ContrastKey, str] = {}
        if self.overwrite:
            self.folder.move_aside()
        else:
            self.folder.check(settings)
            for path, record in self.folder.read_batches():
                try:
                    done.update(
                        ((example["id"], example["step"]), _what(example)) for example in record["examples"]
                    )
                    self._summarise(record["layers"], record["component"], record["rule"]).add_record(record)
                except (KeyError, TypeError, ValueError, RuntimeError) as error:
                    raise UserError(f"{path}: not a whole batch file ({error}); move it away") from error
        self.folder.open(settings, rejected)
        if self._summary is not None:
            self._counted_before = self._summary.compute(together=False)["contrasts"]
        return done

    def _summarise(self, layers: Sequence[int], component: str, rule: str) -> RunSummary:
        if self._summary is None:
            self._summary = RunSummary(layers, component, rule)
        return self._summary

    def _without_done(self, batch: AttributionBatch) -> AttributionBatch:
        """A loader that does not know of the earlier run hands out its contrasts once more."""
        done = self._done or {}
        rows = [row for row, contrast in enumerate(batch.contrasts) if contrast.key not in done]
        for contrast in batch.contrasts:
            if contrast.key in done and done[contrast.key] != _what(contrast.fact._asdict() | contrast._asdict()):
                raise UserError(
                    f"data.source: id {contrast.fact.id!r} was another fact in the run that {self.folder.path} is "
                    "of; give another folder"
                )
        return batch if len(rows) == len(batch.contrasts) else batch.select(rows)

    def _refuse_repeated(self, batch: AttributionBatch) -> None:
        for contrast in batch.contrasts:
            if contrast.key in self._written:
                raise UserError(
                    f"data.source: id {contrast.fact.id!r}, step {contrast.step}, came twice in one run; "
                    "give every fact an id of its own"
                )
            self._written.add(contrast.key)


def _share(total: int, rows: int, place: int, places: int | float) -> list[int]:
    """Which rows of one of a process's batches are taken, where `total` are, spread over batches and rows."""
    # Of batches without number, all from the first.
    known = int(places) if math.isfinite(places) else 1
    share = min(_spread(total, place, known), rows) if place < known else 0
    return [at * rows // share for at in range(share)]


def _spread(total: int, place: int, places: int) -> int:
    """How many of `total` things fall on one of `places`, when they are dealt out evenly."""
    return (place + 1) * total // places - place * total // places


def _what(example: Mapping[str, Any]) -> str:
    """Which fact a record or a contrast is of, and which tokens it compares, whatever its id."""
    compared = ("prompt", "subject", "target_true", "target_false", "true_token_id", "false_token_id")
    words = [*map(example.get, compared), *example["tokens"]]
    return hashlib.sha256(repr(words).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _datamodule(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    # A Trainer sets the attribute, but its type does not declare it.
    return getattr(trainer, "datamodule", None)


def _let_leave_out(trainer: pl.Trainer, find_done: Callable[[], Collection[ContrastKey]] | None) -> None:
    """Tells a data module that can leave contrasts out how to find which; None ends it."""
    datamodule = _datamodule(trainer)
    if datamodule is not None and hasattr(datamodule, "find_done"):
        datamodule.find_done = find_done


def _identity(part: object) -> dict[str, Any]:
    """What a module or data module says of itself; of one that says nothing, its class."""
    if hasattr(part, "identity"):
        identity: dict[str, Any] = part.identity()
        return identity
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}"}
