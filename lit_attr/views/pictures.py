"""A run's pictures, and where they and its curves go: whatever loggers there are, or files.

Axes: L layers, R roles, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image

from lit_attr.attribution.rules import rule_title
from lit_attr.errors import UserError
from lit_attr.evaluation.agreement import verdict
from lit_attr.evaluation.findings import Findings, summary_page
from lit_attr.evaluation.verification import Points
from lit_attr.records.folder import GOES_ON
from lit_attr.views.heatmaps import draw_fact_heatmap, draw_role_heatmap
from lit_attr.views.scatter import draw_scatter

# As many standard errors as hold 95% of a normal distribution.
CONFIDENCE = 1.96
# Meng et al. (2022) restore ten layers at once.
WINDOW = 10


def _to_tensorboard(logger: TensorBoardLogger, tag: str, image: Image.Image, step: int) -> None:
    logger.experiment.add_image(tag, np.asarray(image), global_step=step, dataformats="HWC")


# How a kind of logger takes a picture: for another kind, a function like the one above.
IMAGE_LOGGERS: dict[type[Logger], Callable[[Any, str, Image.Image, int], None]] = {
    TensorBoardLogger: _to_tensorboard
}


def takes_images(trainer: pl.Trainer) -> bool:
    """Whether any of the loggers shows pictures."""
    return any(isinstance(logger, tuple(IMAGE_LOGGERS)) for logger in trainer.loggers)


def show_image(trainer: pl.Trainer, tag: str, image: Image.Image, step: int) -> bool:
    """Gives a picture to each logger that takes any; returns whether one does."""
    for logger in trainer.loggers:
        for kind, show in IMAGE_LOGGERS.items():
            if isinstance(logger, kind):
                show(logger, tag, image, step)
    return takes_images(trainer)


def log_image(trainer: pl.Trainer, figures: Path, tag: str, image: Image.Image, step: int = 0) -> None:
    """Gives a picture to each logger that takes any; where none does, writes it as a PNG file.

    Args:
        trainer: Whose loggers are meant.
        figures: Folder for files.
        tag: Groups and a name, with slashes between.
        image: The picture.
        step: Which of the pictures of the same tag it is.

    Raises:
        UserError: It cannot be written.
    """
    place = next(
        (logger.log_dir for logger in trainer.loggers if isinstance(logger, tuple(IMAGE_LOGGERS))), figures
    )
    try:
        if not show_image(trainer, tag, image, step):
            path = figures / f"{tag}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    except OSError as error:
        # For TensorBoard, of a picture before this one: it writes in a thread of its own.
        raise UserError(
            f"trainer.logger: {place} cannot be written to ({error.strerror or error}); {GOES_ON}"
        ) from error


def log_curves(trainer: pl.Trainer, profile: Mapping[str, Any], name: str) -> None:
    """Logs, for each role, the mean score by layer: the logger's step is the layer, so that runs overlay.

    With it the ends of its 95% confidence interval and, where there are ten layers or more, the sums over windows
    of ten, as Meng et al. (2022) restore ten layers at once.

    Args:
        trainer: Whose loggers are meant.
        profile: As the summary holds it.
        name: What the curves are grouped under.
    """
    for place, layer in enumerate(profile["layers"]):
        values: dict[str, float] = {}
        for column, role in enumerate(profile["roles"]):
            means = [row[column] for row in profile["mean_score"]]
            error = profile["standard_error"][place][column]
            if means[place] is None:
                continue
            part = safe_tag(role)
            values[f"{name}/{part}"] = means[place]
            if error is not None:
                values[f"{name}_low/{part}"] = means[place] - CONFIDENCE * error
                values[f"{name}_high/{part}"] = means[place] + CONFIDENCE * error
            if place + WINDOW <= len(means):
                values[f"{name}_sum_of_{WINDOW}_layers/{part}"] = sum(means[place : place + WINDOW])
        for logger in trainer.loggers:
            logger.log_metrics(values, step=layer)


def log_trust(trainer: pl.Trainer, figures: Path, summary: Mapping[str, Any], points: Sequence[Points]) -> None:
    """Shows how far the scores can be trusted: a scatter plot, and curves over layers and over shares of cells.

    Args:
        trainer: Whose loggers are meant.
        figures: Folder for pictures that no logger takes.
        summary: The run's, with the report on its scores in it.
        points: Scores and exact effects of cells; none where an earlier run has compared them.
    """
    trust, profile = summary["trust"], summary["profile"]
    if points:
        image = draw_scatter(
            *map(np.concatenate, zip(*points, strict=True)),
            title=f"{component_name(profile['component'])} {rule_title(profile['rule'])} and exact effects",
            subtitle=verdict(trust),
        )
        log_image(trainer, figures, "trust/exact_effects", image)
    for layer, agreement in trust["by_layer"].items():
        values = {f"trust/{name}": value for name, value in agreement.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=int(layer))
    faithfulness = trust.get("faithfulness", {"percent": ()})
    for place, percent in enumerate(faithfulness["percent"]):
        values = {
            f"{measure}/{ranking}": found["curve"][place]
            for measure in ("comprehensiveness", "sufficiency")
            for ranking, found in faithfulness[measure].items()
            if found["curve"][place] is not None
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=percent)


def log_run(
    trainer: pl.Trainer, summary: Mapping[str, Any], manifest: Mapping[str, Any], findings: Findings
) -> None:
    """Shows in TensorBoard: a page of text, charts that lay the curves out with their bands, and hyperparameters.

    Settings and final numbers in the HParams tab set several runs side by side.
    """
    roles = [safe_tag(role) for role in summary["profile"]["roles"]]
    charts = {
        name: {
            role: ["Margin", [f"{kind}/{role}" for kind in (name, f"{name}_low", f"{name}_high")]]
            for role in roles
        }
        for name in ("mean_score", "mean_score_known")
    }
    settings = {
        f"{group}/{name}": value if isinstance(value, (bool, int, float, str)) else str(value)
        for group in ("model", "data")
        for name, value in manifest[group].items()
    }
    metrics = {
        name: summary[name] for name in ("contrasts", "contrast_accuracy", "known_share", "median_logit_diff")
    }
    if summary["trust"] is not None:
        metrics["trust_pearson"] = summary["trust"]["pearson"]
    metrics = {name: value for name, value in metrics.items() if value is not None}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("summary", summary_page(summary, manifest, findings))
            logger.experiment.add_custom_scalars(charts)
            logger.log_hyperparams(settings, metrics)


def safe_tag(text: object) -> str:
    """Text from the data as one part of a tag or of a file's name: a slash would open a group, or a folder."""
    return re.sub(r"[^\w.-]", "_", str(text))[:100].lstrip(".") or "_"


def fact_image(example: Mapping[str, Any], layers: tuple[int, ...], component: str, rule: str) -> Image.Image:
    """The heatmap of one example of a batch file."""
    compared = f"{example['true_token'].strip()} − {example['false_token'].strip()}"
    known = "known" if example["rank_true"] == 0 else "not known"
    difference = f"{example['logit_diff']:+.2f}".replace("-", "−")
    return draw_fact_heatmap(
        np.asarray(example["scores"]["sum"], dtype=float),
        layers=layers,
        tokens=example["tokens"],
        subject_span=tuple(example["subject_span"]),
        title=f"{example['prompt']} → {example['target_true'].strip()} / {example['target_false'].strip()}",
        subtitle=f"logit difference {compared}: {difference} · {known} · {component_name(component)} "
        f"{rule_title(rule)}",
    )


def profile_image(profile: Mapping[str, Any], of_what: str) -> Image.Image:
    """The role × layer heatmap of a profile, as the summary holds it.

    Args:
        profile: The profile.
        of_what: Which contrasts it is of, for the line below the title.
    """
    return draw_role_heatmap(
        np.array(profile["mean_score"], dtype=float),
        layers=profile["layers"],
        roles=profile["roles"],
        counts=profile["contrasts"],
        title=f"Mean {component_name(profile['component'])} {rule_title(profile['rule'])} by layer and token role",
        subtitle=of_what,
    )


def component_name(component: str) -> str:
    """A component as it is written in titles."""
    return "MLP" if component == "mlp" else component
