"""The callback that writes attributions to disk and shows them in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from numpy.typing import NDArray

from lit_attr.attribution.results import AttributionBatch
from lit_attr.callbacks.background import Background
from lit_attr.callbacks.display import RunDisplay
from lit_attr.callbacks.progress import describe_comparison
from lit_attr.errors import ArgumentError, ReportedError, UserError, arguments_of, check_choice, warn_about
from lit_attr.evaluation.summary import summarise
from lit_attr.facts.batches import ContrastBatch
from lit_attr.facts.contrasts import Contrast, ContrastKey
from lit_attr.facts.table.keys import GrowingKeys, Hashes, hash_keys
from lit_attr.records.encoding import batch_record, exact_record, split_finite
from lit_attr.records.files import briefly, check_path
from lit_attr.records.folder import RunFolder
from lit_attr.records.kept import has_means, keep_error_model, keep_means, read_error_model
from lit_attr.records.reading import record_of
from lit_attr.records.screening import Answered, Screened, read_screened, write_screened
from lit_attr.records.state import RunState
from lit_attr.text import cut
from lit_attr.trainers import HasContent, await_others, datamodule_of, identity_of, rejected_of

BATCHES_BETWEEN_PROFILES = 50

Heatmaps = Literal["spread", "largest"]


class AttributionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, if that is an `AttributionBatch`.

    A run leaves one JSON file a batch, one for each contrast with exact effects, a manifest, the refused rows, and
    a summary, which is computed from these files. Pictures of facts, of the mean scores by layer and token role,
    and of those of the largest relations go to the Trainer's `TensorBoardLogger`, or to PNG files in `figures`
    where there is none; curves of the mean scores go to every logger. A second run with the same settings into the
    same folder makes what is missing, and nothing else.

    Args:
        output_dir: Folder for the files. A run of the same rows with a larger `limit` extends an earlier one.
        max_heatmaps: How many contrasts get a heatmap.
        heatmaps: Which contrasts get one: `spread` (the first in the random order) or `largest` (those with the
            largest logit differences). The differences count with either sign.
        heatmap_ids: Ids of facts that get a heatmap as well.
        overwrite: Move what an earlier run left in the folder aside and start afresh. Leave it out to resume a
            run.
    """

    def __init__(
        self,
        output_dir: str = "lit_attr_output",
        max_heatmaps: int = 32,
        heatmaps: Heatmaps = "spread",
        heatmap_ids: list[int | str] | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(write_interval="batch")
        with arguments_of("writer"):
            check_path("output_dir", Path(output_dir))
        if not output_dir or (Path(output_dir).exists() and not Path(output_dir).is_dir()):
            raise ArgumentError("output_dir", f"{output_dir!r} is not a folder; give another", "writer")
        if max_heatmaps < 0:
            raise ArgumentError("max_heatmaps", f"{max_heatmaps} is less than 0; give 0 or more", "writer")
        with arguments_of("writer"):
            check_choice("heatmaps", heatmaps, get_args(Heatmaps))
        self.folder = RunFolder(output_dir)
        self.max_heatmaps = max_heatmaps
        self.heatmaps: Heatmaps = heatmaps
        self.heatmap_ids = frozenset(heatmap_ids or ())
        self.overwrite = overwrite
        self._state: RunState | None = None
        self._written = GrowingKeys()
        self._display = RunDisplay(self.folder)
        self._started = 0.0
        self._background = Background()

    @property
    def resumed(self) -> int:
        """How many contrasts the runs before this one have scored."""
        return len(self._state.done) if self._state is not None else 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier run."""
        super().setup(trainer, pl_module, stage)
        self._state, self._written = None, GrowingKeys()
        self._display = RunDisplay(self.folder)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the folder, where no data module has asked for the run's state."""
        self.run_state(trainer)

    def run_state(self, trainer: pl.Trainer) -> RunState:
        """The state of the run. The first call opens the folder; every process has to make it.

        Whether the folder is of a run with the same settings is known only once the model is loaded.

        Raises:
            UserError: The folder is of another run, or cannot be used.
        """
        if self._state is None:
            self._state = self._open(trainer)
            self._started = time.perf_counter()
        return self._state

    def pilot_effects(self, trainer: pl.Trainer) -> list[tuple[Contrast, NDArray[np.float64]]]:
        """The finite exact effects of the pilot, once all processes have computed theirs.

        Each is [L, T], with a row for each component of the first layer, then of the second, and so on.

        Raises:
            UserError: Another process of the run is gone, or an earlier batch could not be written.
        """
        with arguments_of("writer"), arguments_of("data", only=("source",)):
            pilot = self.run_state(trainer).pilot
            self._background.finish()
            await_others(trainer)
            records = self.folder.wait_for_exact([contrast.key for contrast in pilot])
        return [
            (contrast, _layer_by_layer(record.effects))
            for contrast, record in zip(pilot, records, strict=True)
            if record.refused is None
        ]

    def read_error_model(self, trainer: pl.Trainer) -> Mapping[str, Any] | None:
        """The error model of the run; None where there is none yet."""
        with arguments_of("writer"):
            self.run_state(trainer)
            return read_error_model(self.folder)

    def keep_error_model(self, trainer: pl.Trainer, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keeps an error model, and returns the one that the run has: the first that was kept."""
        pilot = [contrast.key for contrast in self.run_state(trainer).pilot]
        with arguments_of("writer"):
            return keep_error_model(self.folder, {"pilot": pilot, **fields})

    def mean_writes(self, trainer: pl.Trainer) -> Path | None:
        """The file of the run's mean writes; None where there is none yet."""
        with arguments_of("writer"):
            self.run_state(trainer)
            return self.folder.mean_writes if has_means(self.folder) else None

    def keep_mean_writes(self, trainer: pl.Trainer, content: bytes) -> Path:
        """Keeps mean writes, unless the run has any, and returns the file of those that it has."""
        with arguments_of("writer"):
            self.run_state(trainer)
            keep_means(self.folder, content)
            return self.folder.mean_writes

    def read_screened(self, trainer: pl.Trainer) -> tuple[Hashes, Answered]:
        """The contrasts that earlier runs have screened: the hashes of their keys, and the answers."""
        with arguments_of("writer"):
            self.run_state(trainer)
            return read_screened(self.folder.screened)

    def keep_screened(self, trainer: pl.Trainer, rows: Iterable[Screened]) -> None:
        """Keeps the screened contrasts."""
        with arguments_of("writer"), self.folder.writing():
            write_screened(self.folder.screened, rows)

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Says in the progress bar which comparison with exact effects is computed."""
        if isinstance(batch, ContrastBatch) and batch.comparison is not None:
            describe_comparison(trainer, batch.comparison, is_pilot=batch.is_pilot)

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
        """Has the records of a batch written while the next one is computed.

        Raises:
            UserError: `predict_step` returned something else than an `AttributionBatch`, or an earlier batch has
                a contrast for the second time or could not be written.
        """
        if not isinstance(prediction, AttributionBatch):
            raise UserError(
                f"trainer.callbacks: AttributionWriter writes AttributionBatch, but {type(pl_module).__name__}'s "
                f"predict_step returns {type(prediction).__name__}"
            )
        with arguments_of("writer"), arguments_of("data", only=("source",)):
            state = self.run_state(trainer)
            drawn = self._first_places(batch) if trainer.is_global_zero else frozenset()
            wait_for_copy = prediction.begin_copy()
            self._background.submit(lambda: self._write(trainer, wait_for_copy(), drawn, state))
            if trainer.is_global_zero and (batch_idx + 1) % BATCHES_BETWEEN_PROFILES == 0:
                self._background.submit(lambda: self._display.show_so_far(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Unlocks the folder, so that another run can resume."""
        try:
            self._background.finish()
        except Exception:
            # The run ends with `exception`: where a device fails, the writer's thread fails as well. What is not
            # written is computed by the next run.
            pass
        finally:
            self.folder.unlock()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the pictures and the summary. Every process comes here, unless the run has failed."""
        if stage != "predict":
            return
        # With an empty loader the earlier predict hooks are skipped.
        self.run_state(trainer)
        with arguments_of("writer"), arguments_of("data", only=("source",)):
            self._background.finish()
            await_others(trainer, at_end=True)
            # Without a time limit, unlike a collective: one process may have far more to do than another.
            self.folder.finish()
            if trainer.is_global_zero:
                self._finish(trainer)
            self.folder.unlock()

    def _without_refused(self, batch: AttributionBatch, state: RunState) -> AttributionBatch:
        """Leaves out contrasts that are done, and those with a number that is not finite, which it lists."""
        rows = state.rows_to_do(batch.contrasts)
        todo = batch if len(rows) == len(batch.contrasts) else batch.select(rows)
        finite, rejected = split_finite(todo) if todo.contrasts else (todo, [])
        if rejected:
            self.folder.add_rejected(rejected)
        written = self._written.add(hash_keys(contrast.key for contrast in finite.contrasts))
        for contrast, before in zip(finite.contrasts, written.tolist(), strict=True):
            if before >= 0:
                raise UserError(
                    f"data.source: id {briefly(contrast.fact.id)}, step {contrast.step}, came twice in one run; "
                    "give every fact an id of its own"
                )
        return finite

    def _first_places(self, batch: Any) -> frozenset[ContrastKey]:
        """The contrasts of a batch that are among the first of the random order, which get heatmaps."""
        if self.heatmaps != "spread" or not isinstance(batch, ContrastBatch) or batch.places is None:
            return frozenset()
        places = zip(batch.contrasts, batch.places, strict=True)
        return frozenset(
            contrast.key for contrast, place in places if place is not None and place < self.max_heatmaps
        )

    def _write(
        self, trainer: pl.Trainer, batch: AttributionBatch, drawn: Collection[ContrastKey], state: RunState
    ) -> None:
        finite = self._without_refused(batch, state)
        if finite.contrasts:
            record = batch_record(finite)
            self.folder.write_batch(record)
            self._display.add(record)
            for example in record.examples:
                if (example.id, example.step) in drawn:
                    self._display.show_fact(trainer, record_of(record, example))
        for effects in batch.exact:
            self.folder.write_exact(exact_record(effects, rule=batch.rule))

    def _finish(self, trainer: pl.Trainer) -> None:
        """Computes the summary from the records, and makes the pictures that are missing."""
        findings = summarise(
            self.folder,
            heatmap_ids=self.heatmap_ids,
            spread=self.max_heatmaps if self.heatmaps == "spread" else 0,
            largest=self.max_heatmaps if self.heatmaps == "largest" else 0,
        )
        if findings.not_found:
            ids = cut(", ".join(map(repr, findings.not_found)), 200)
            warn_about("heatmap_ids", f"the run has no fact with the id {ids}")
        self._display.show_run(trainer, findings)
        # Last: a run that ends before has no summary, and the same command makes the pictures that are missing.
        if self._display.is_changed(findings.summary):
            seconds = time.perf_counter() - self._started
            self.folder.write_summary({**findings.summary, "seconds": seconds})

    def _open(self, trainer: pl.Trainer) -> RunState:
        # One process reads and the others receive: what one of them wrote meanwhile would look done to the next.
        # They receive a failure as well, or they would wait for ever.
        settings: dict[str, Any] = {}
        sent: tuple[str, RunState, dict[str, Any]] | str = ""
        failure: Exception | None = None
        try:
            datamodule = datamodule_of(trainer)
            settings = {"model": identity_of(trainer.lightning_module), "data": identity_of(datamodule)}
            if trainer.is_global_zero:
                with arguments_of("writer"):
                    run = self.folder.lock()
                    sent = run, self._read(settings, datamodule), settings
        except Exception as error:
            failure, sent = error, str(error)
        sent = trainer.strategy.broadcast(sent)
        state = RunState()
        if failure is None:
            try:
                state = self._join(trainer, sent, settings)
            except Exception as error:
                failure = error
        # All leave where one has failed, or the others would wait for it.
        if not trainer.strategy.reduce_boolean_decision(failure is None):
            raise failure or ReportedError("another process of the run could not start")
        self.folder.expect(trainer.world_size)
        return state

    def _join(
        self, trainer: pl.Trainer, sent: tuple[str, RunState, dict[str, Any]] | str, settings: Mapping[str, Any]
    ) -> RunState:
        """Joins the run that the first process has opened."""
        if isinstance(sent, str):
            raise ReportedError(sent)
        run, state, expected = sent
        if settings != expected:
            raise UserError(
                f"data.source: process {trainer.global_rank} has other rows or another model than the first one; "
                "give every process the same"
            )
        if not trainer.is_global_zero:
            with arguments_of("writer"):
                self.folder.join(run, trainer.global_rank)
        return state

    def _read(self, settings: Mapping[str, Mapping[str, Any]], datamodule: object) -> RunState:
        """Opens the folder and reads what is in it."""
        if self.overwrite:
            self.folder.move_aside()
        else:
            self.folder.check(settings, datamodule.content if isinstance(datamodule, HasContent) else None)
        self.folder.open(settings, rejected_of(datamodule))
        return self.folder.read_state()


def _layer_by_layer(effects: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The effects of all components in one array: for each layer a row of each component."""
    stacked_LCT = np.stack([*effects.values()], axis=1)
    return stacked_LCT.reshape(-1, stacked_LCT.shape[2])
