"""What a run shows of its records: pictures, curves and a page, in the Trainer's loggers or as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from PIL import Image

from lit_attr.callbacks.loggers import (
    Shown,
    is_tensorboard,
    log_curves,
    log_image,
    record_shown,
    shown_images,
    takes_images,
)
from lit_attr.callbacks.metrics import LiveCounts
from lit_attr.evaluation.findings import RunFindings
from lit_attr.evaluation.strongest import has_effects
from lit_attr.records.folder import RunFolder
from lit_attr.records.schema import BatchRecord
from lit_attr.text import safe_name
from lit_attr.views.curves import (
    agreement_curves,
    by_ending,
    effect_curves,
    faithfulness_curves,
    hyperparameters,
    profile_curves,
)
from lit_attr.views.labels import shortened
from lit_attr.views.pages import neurons_page, summary_page
from lit_attr.views.pictures import (
    agreement_image,
    components_image,
    fact_image,
    magnitude_image,
    profile_image,
)

MAX_RELATION = 60  # characters


class Picture(NamedTuple):
    """A picture of a run, not drawn yet.

    Attributes:
        tag: Its name in loggers and, with an ending, in the folder of figures.
        step: Its step in loggers: how many contrasts it is of, 0 for one contrast.
        draw: Draws it.
    """

    tag: str
    step: int
    draw: Callable[[], Image.Image]


class RunDisplay:
    """Shows a run's records. What it shows of a complete run is computed from the files; the rest counts along.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._counts: LiveCounts | None = None
        # Pictures of earlier runs, once they are looked up, and of this one.
        self._shown_before: set[Shown] = set()
        self._shown: set[Shown] = set()

    def add(self, record: BatchRecord) -> None:
        """Counts a batch that this process has written."""
        if self._counts is None:
            self._counts = LiveCounts(record.layers, [*record.examples[0].scores], record.rule)
        self._counts.add(record)

    def show_so_far(self, trainer: pl.Trainer) -> None:
        """Shows the mean scores of the contrasts that this process has written."""
        if self._counts is not None:
            for picture in profile_pictures(self._counts.compute()):
                self._show(trainer, picture)

    def show_fact(self, trainer: pl.Trainer, example: Mapping[str, Any]) -> None:
        """Shows the heatmap of a contrast, unless it has been shown.

        Args:
            trainer: The Trainer with the loggers.
            example: The contrast, as `load_attributions` yields it.
        """
        tag = f"facts/{safe_name(example['id'])}-{example['step']}"
        draw = partial(fact_image, example)
        if (tag, 0) not in self._shown_before | self._shown:
            self._show(trainer, Picture(tag, 0, draw))

    def show_run(self, trainer: pl.Trainer, findings: RunFindings) -> None:
        """Shows a complete run: what earlier runs have not shown of it.

        Args:
            trainer: The Trainer with the loggers.
            findings: What the records show.
        """
        is_changed = self.is_changed(findings.summary)
        self._shown_before = shown_images(trainer, self._folder)
        for example in (*findings.spread, *findings.asked_for, *findings.largest):
            self.show_fact(trainer, example)
        for picture in (*profile_pictures(findings.summary), *_other_pictures(findings)):
            # A file has no step, so one of an earlier state of the run has the same name.
            is_shown = (picture.tag, picture.step if takes_images(trainer) else 0) in self._shown_before
            if not is_shown or (is_changed and not takes_images(trainer)):
                self._show(trainer, picture)
        page = ("summary", findings.summary["contrasts"])
        if is_changed:
            self._log(trainer.loggers, findings)
            self._shown.add(page)
        elif takes_images(trainer) and page not in self._shown_before:
            # The event files are gone, or the earlier runs had none.
            self._log([each for each in trainer.loggers if is_tensorboard(each)], findings)
            self._shown.add(page)
        record_shown(trainer, self._folder, self._shown)

    def is_changed(self, summary: Mapping[str, Any]) -> bool:
        """Whether a summary differs from the one that an earlier run has left, timings aside."""
        earlier = self._folder.read_summary()
        return earlier is None or {name: value for name, value in earlier.items() if name != "seconds"} != summary

    def _show(self, trainer: pl.Trainer, picture: Picture) -> None:
        log_image(trainer, self._folder.figures, picture.tag, picture.draw(), picture.step)
        self._shown.add((picture.tag, picture.step))

    def _log(self, loggers: Sequence[Logger], findings: RunFindings) -> None:
        """Logs a page and hyperparameters to TensorBoard, curves to the other loggers.

        TensorBoard would take a layer for a step of training; its tab Attributions has the curves.
        """
        summary, manifest = findings.summary, self._folder.read_manifest()
        others = [logger for logger in loggers if not is_tensorboard(logger)]
        for ending, of_component in by_ending(summary):
            profile, known, agreement = (of_component[name] for name in ("profile", "known_profile", "agreement"))
            log_curves(others, profile_curves(profile, f"mean_score{ending}"))
            log_curves(others, profile_curves(known, f"mean_score_known{ending}"))
            log_curves(others, effect_curves(profile, ending))
            log_curves(others, effect_curves(known, f"_known{ending}"))
            if agreement is not None:
                log_curves(others, agreement_curves(agreement, ending))
                if "faithfulness" in agreement:
                    log_curves(others, faithfulness_curves(agreement["faithfulness"]))
        for logger in loggers:
            if is_tensorboard(logger):
                logger.experiment.add_text("summary", summary_page(findings, manifest))
                if summary["neurons"] is not None:
                    logger.experiment.add_text("neurons", neurons_page(summary["neurons"]))
                logger.log_hyperparams(*hyperparameters(summary, manifest))


def profile_pictures(summary: Mapping[str, Any]) -> Iterator[Picture]:
    """The pictures of the mean effects, or of the mean scores where there are none, also of known facts alone."""
    count = summary["contrasts"]
    if not count:
        return
    words = f"{count} contrasts · true answer preferred in {summary['contrast_accuracy']:.1%}"
    known = f"{summary['known']} contrasts of known facts"
    profiles = []
    for ending, found in by_ending(summary):
        profiles.append(found["profile"])
        yield Picture(f"averages/role_by_layer{ending}", count, partial(profile_image, found["profile"], words))
        if has_effects(found["profile"]):
            draw = partial(magnitude_image, found["profile"], words)
            yield Picture(f"averages/role_by_layer_magnitude{ending}", count, draw)
        if summary["known"]:
            draw = partial(profile_image, found["known_profile"], known)
            yield Picture(f"averages/role_by_layer_known{ending}", count, draw)
    if len(profiles) > 1:
        yield Picture("averages/components", count, partial(components_image, profiles, words))


def _other_pictures(findings: RunFindings) -> Iterator[Picture]:
    """The pictures of the largest relations, and of scores and exact effects."""
    count = findings.summary["contrasts"]
    for (ending, summary), views in zip(by_ending(findings.summary), findings.components.values(), strict=True):
        for relation, profile in views.relations.items():
            words = f"relation {shortened(relation, MAX_RELATION)} · {max(profile['contrasts'])} contrasts"
            tag = f"relations{ending}/{safe_name(relation)}"
            yield Picture(tag, count, partial(profile_image, profile, words))
        agreement, points = summary["agreement"], views.points
        if agreement is not None and points is not None:
            draw = partial(agreement_image, points, summary)
            yield Picture(f"exact_effects/agreement{ending}", agreement["contrasts"], draw)
