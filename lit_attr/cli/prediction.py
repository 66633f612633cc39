"""`lit-attr predict`: LightningCLI with the module, the data module and the writer."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_attr.callbacks.signals import StopOnSignal, Stopped, exit_status, listener, process_rank
from lit_attr.callbacks.writer import AttributionWriter
from lit_attr.cli.opening import component_line, facts_line, model_line
from lit_attr.cli.parser import OneLineParser
from lit_attr.cli.progress import RunProgress, has_default_bar
from lit_attr.cli.quiet import quieten
from lit_attr.datamodule import CounterfactDataModule
from lit_attr.errors import ReportedError, UserError, arguments_of
from lit_attr.evaluation.closing import closing_lines
from lit_attr.models.weights.checkpoints import read_checkpoint
from lit_attr.module import AttributionModule
from lit_attr.records.folder import RESUME_HINT, RunFolder
from lit_attr.text import TOO_DEEP, never_fail_to_print, print_error, print_text
from lit_attr.trainers import named_strategy, shares_model


class PredictTrainer(pl.Trainer):
    """Lightning's Trainer. It does not keep the predictions: those of a data set would fill the memory."""

    def predict(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = False,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = True,
    ) -> list[Any] | list[list[Any]] | None:
        """Runs the model over all facts.

        Args:
            model: The module.
            dataloaders: Loaders of batches.
            datamodule: A data module with a loader of batches.
            return_predictions: Whether to keep every prediction.
            ckpt_path: Checkpoint of a Lightning module that contains the language model, for its weights. They are
                loaded into the model that `model.model_name` names.
            weights_only: Refuse a checkpoint that holds more than weights and settings. Reading other objects can
                run code.
        """
        return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes a process that Lightning has spawned, and that gets the Trainer, as quiet as the first one."""
        self.__dict__.update(state)
        quieten()


class SaveConfigInOutput(SaveConfigCallback):
    """Saves the settings beside the records, once the run is known to start."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Saves nothing yet: a model or a row may still be refused, and then no file is left behind."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes `config.yaml`; that of an earlier run into the same folder had the same settings."""
        if trainer.is_global_zero:
            settings = self.parser.dump(self.config, skip_unset=False)
            with arguments_of("writer"):
                RunFolder(self.config.writer.output_dir).write_config(settings)


class AttributionCLI(LightningCLI):
    """`lit-attr predict`, with settings of model, data, writer and Trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the writer's settings, and the helps of the groups."""
        parser.add_lightning_class_args(AttributionWriter, "writer")
        if isinstance(parser, OneLineParser):
            parser.add_group_helps()

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the seed, with a description of what it is for here."""
        help_text = "Seed of all random number generators, or true for a random one; no score depends on it."
        parser.add_argument(
            "--seed_everything", type=bool | int, default=self.seed_everything_default, help=help_text
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`predict`, without the arguments that other settings provide."""
        return {"predict": {"model", "dataloaders", "datamodule"}}

    def _parse_ckpt_path(self) -> None:
        """Leaves the settings alone: a checkpoint's hyperparameters belong to another module than ours."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the settings; refuses a `--config` before `predict`, which would have no effect."""
        try:
            super().parse_arguments(parser, args)
        except RecursionError:
            parser.error(TOO_DEEP)
        if self.config.get("config"):
            parser.error("config: it goes after the subcommand: lit-attr predict --config FILE")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Puts the logs into the output folder by default, and adds the run's own progress bar."""
        settings = self.config.predict
        output = settings.writer.output_dir
        if settings.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = output
        if settings.trainer.logger in (None, True):
            # As the Trainer's own, but without the metric of -1 that it logs.
            folder = settings.trainer.default_root_dir or output
            kwargs["logger"] = TensorBoardLogger(folder, default_hp_metric=False)
        own_bar = has_default_bar(self.config_init.predict.trainer)
        if own_bar:
            kwargs["enable_progress_bar"] = False
        strategy = settings.trainer.strategy
        if isinstance(strategy, str) and "." in strategy:
            kwargs["strategy"] = named_strategy(strategy)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, ImportError, RuntimeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error
        listener.trainer = trainer
        # A Trainer sets its callbacks on itself. After the writer, whose last work is part of the progress.
        trainer.callbacks += [RunProgress(shows_bar=own_bar), StopOnSignal()]  # type: ignore[attr-defined]
        return trainer

    def before_predict(self) -> None:
        """Loads facts and model before the Trainer opens its logs, so that a mistake in them leaves no file."""
        settings, checkpoint = self.config_init.predict, None
        if settings.ckpt_path is not None:
            checkpoint = read_checkpoint(settings.ckpt_path, weights_only=settings.weights_only is not False)
            # The Trainer would read it once more.
            settings.ckpt_path = None
        self.trainer.strategy.connect(self.model)
        self.model.trainer = self.datamodule.trainer = self.trainer
        self.datamodule.setup("predict")
        if self.trainer.is_global_zero:
            print_text(facts_line(self.datamodule))
            print_text(model_line(self.model))
        # Processes that share a model load it together, once all of them are started.
        if not shares_model(self.trainer):
            self.model.configure_model()
        if self.trainer.is_global_zero:
            print_text(component_line(self.model))
        if checkpoint is not None:
            self.model.on_load_checkpoint(checkpoint)


# How LightningCLI declares the settings of `predict`.
DECLARATION: Mapping[str, Any] = MappingProxyType(
    {
        "trainer_class": PredictTrainer,
        "trainer_defaults": {"inference_mode": False},
        "seed_everything_default": False,
        "parser_class": OneLineParser,
        "auto_configure_optimizers": False,
        "load_from_checkpoint_support": False,
    }
)


def predict(args: Sequence[str] | None) -> None:
    """Runs `lit-attr predict`.

    Args:
        args: Words after `lit-attr`; those of the process where None.

    Raises:
        SystemExit: 1 for a mistake in a file, a model or a row, 2 for one in the settings' form, 143 where SIGTERM
            stopped the run and 130 where SIGINT (Ctrl-C) did; with one line on standard error.
    """
    quieten()
    never_fail_to_print()
    listener.start()
    try:
        cli = AttributionCLI(
            AttributionModule,
            CounterfactDataModule,
            save_config_callback=SaveConfigInOutput,
            args=list(args) if args is not None else None,
            **DECLARATION,
        )
        if cli.trainer.is_global_zero:
            _print_closing_lines(cli.trainer)
    except (UserError, OSError) as error:
        # The first process reports for all, except for an error of another process alone.
        if not (process_rank() and isinstance(error, ReportedError)):
            where = f" in process {process_rank()}" if process_rank() else ""
            print_error(f"lit-attr: error{where}: {_reported(error)}")
        # The first process may have stopped before this one has come as far.
        is_stop = isinstance(error, ReportedError) and listener.signum is not None
        sys.exit(exit_status(128 + (listener.signum or 0) if is_stop else 1))
    except Stopped as stop:
        if process_rank() == 0:
            print_error(f"lit-attr: {stop}")
        listener.end_children()
        sys.exit(exit_status(128 + stop.signum))
    finally:
        # Where a signal has ended the run, another one must not interrupt the end itself.
        if listener.signum is None:
            listener.stop()


def _print_closing_lines(trainer: pl.Trainer) -> None:
    writer = next(each for each in trainer.callbacks if isinstance(each, AttributionWriter))  # type: ignore[attr-defined]
    pictures = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    print_text(closing_lines(writer.folder.path, pictures=pictures, resumed=writer.resumed))


def _reported(error: BaseException) -> str:
    """The error in one line, with the fix."""
    known = error
    # A logger that is closed because its disk is full says less than the error that closed it.
    while not isinstance(known, UserError) and known.__context__ is not None:
        known = known.__context__
    if isinstance(known, UserError):
        return " ".join(str(known).split())
    return f"writer.output_dir or trainer.logger: {' '.join(str(error).split())}; {RESUME_HINT}"
