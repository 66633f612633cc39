"""What loggers get from a run as plain data: curves over layers and shares of cells, hyperparameters.

A curve is a sequence of steps and the values at them, as `logger.log_metrics(values, step)` takes them. Where the
step is the layer, the curves of several runs overlay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lit_attr.evaluation.profile import KINDS
from lit_attr.evaluation.summary import by_component
from lit_attr.text import cut, safe_name

# The half width of a normal distribution's 95% interval, in standard errors.
CONFIDENCE = 1.96
# Meng et al. (2022) restore ten layers at once.
WINDOW = 10

MAX_SETTING = 1_000  # characters
# The file of a picture has more in its name.
MAX_TAG_BYTES = 100
_BEFORE = WINDOW // 2

Curves = Iterator[tuple[int, dict[str, float]]]


def windows(layers: Sequence[int]) -> list[slice]:
    """The window of ten layers around each layer, from five layers before it to four after it.

    At the first and the last layers a window is cut off, as in ROME's causal traces.

    Args:
        layers: Layer indices, ascending.

    Returns:
        A slice of `layers` for each layer; none for fewer than ten layers, or where some between are missing.
    """
    follow_each_other = all(after - before == 1 for before, after in pairwise(layers))
    if len(layers) < WINDOW or not follow_each_other:
        return []
    return [slice(max(0, place - _BEFORE), place - _BEFORE + WINDOW) for place in range(len(layers))]


def role_tag(role: str) -> str:
    """A token role as part of a tag."""
    return role.replace(" ", "_")


def by_ending(summary: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A run's summary for each of its components, with what ends the tags of its pictures and curves.

    Nothing ends those of the component named first, so that they are the same in a run of it alone.
    """
    for place, (component, found) in enumerate(by_component(summary).items()):
        yield f"_{safe_name(component, MAX_TAG_BYTES)}" if place else "", found


def profile_curves(profile: Mapping[str, Any], name: str) -> Curves:
    """The mean score of each role by layer, with the ends of its 95% confidence interval.

    Where there are windows, see :func:`windows`, the sum over the one around each layer follows.

    Args:
        profile: The profile, as the summary has it.
        name: The group of the curves' tags, such as `mean_score`.

    Yields:
        A layer, and its values by tag.
    """
    sums = windows(profile["layers"])
    for place, layer in enumerate(profile["layers"]):
        values: dict[str, float] = {}
        for column, role in enumerate(profile["roles"]):
            means = [row[column] for row in profile["mean_score"]]
            error = profile["standard_error"][place][column]
            if means[place] is None:
                continue
            part = role_tag(role)
            values[f"{name}/{part}"] = means[place]
            if error is not None:
                values[f"{name}_low/{part}"] = means[place] - CONFIDENCE * error
                values[f"{name}_high/{part}"] = means[place] + CONFIDENCE * error
            if sums:
                values[f"{name}_sum_of_{WINDOW}_layers/{part}"] = sum(means[sums[place]])
        yield layer, values


def effect_curves(profile: Mapping[str, Any], ending: str = "") -> Curves:
    """The mean effect and mean magnitude of each role by layer, with the ends of their 95% intervals.

    Args:
        profile: The profile, as the summary has it; one without exact effects has no such curves.
        ending: Ends the names of the groups of tags, such as `_known` or `_attention`.

    Yields:
        A layer, and its values by tag.
    """
    for place, layer in enumerate(profile["layers"]):
        values: dict[str, float] = {}
        for mean, low, high in KINDS:
            for column, role in enumerate(profile["roles"]):
                if profile[mean][place][column] is not None:
                    group, part = f"{mean}{ending}", role_tag(role)
                    values[f"{group}/{part}"] = profile[mean][place][column]
                    values[f"{group}_low/{part}"] = profile[low][place][column]
                    values[f"{group}_high/{part}"] = profile[high][place][column]
        if values:
            yield layer, values


def agreement_curves(agreement: Mapping[str, Any], ending: str = "") -> Curves:
    """The agreement of scores and exact effects by layer, with the ends of the 95% confidence intervals.

    Args:
        agreement: The agreement, as the summary has it.
        ending: Ends the names of the groups of tags, such as `_attention`.

    Yields:
        A layer, and its values by tag.
    """
    for layer, found in agreement["by_layer"].items():
        values: dict[str, float] = {}
        for name, interval in found["intervals"].items():
            if found[name] is not None:
                values[f"agreement{ending}/{name}"] = found[name]
            if interval is not None:
                low, high = (f"agreement{ending}_{end}/{name}" for end in ("low", "high"))
                values[low], values[high] = interval
        yield int(layer), values


def faithfulness_curves(faithfulness: Mapping[str, Any]) -> Curves:
    """Comprehensiveness and sufficiency of each ranking by the share of cells.

    Args:
        faithfulness: The faithfulness curves, as the summary's agreement has them.

    Yields:
        A percentage of the cells, and the values at it by tag.
    """
    for place, percent in enumerate(faithfulness["percent"]):
        yield (
            percent,
            {
                f"{measure}/{ranking}": found["curve"][place]
                for measure in ("comprehensiveness", "sufficiency")
                for ranking, found in faithfulness[measure].items()
                if found["curve"][place] is not None
            },
        )


def hyperparameters(
    summary: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[dict[str, bool | int | float | str], dict[str, float]]:
    """The settings that runs mostly differ in, and final numbers, for TensorBoard's HParams tab.

    Args:
        summary: The run's summary.
        manifest: The run's manifest.

    Returns:
        The settings, and the metrics that have a value.
    """
    model, data = manifest["model"], manifest["data"]
    named = {
        "model": model.get("model_name"),
        "rule": model.get("rule"),
        "component": model.get("component"),
        "ablation": model.get("ablation"),
        "format": model.get("quantization") or model.get("dtype"),
        "min_agreement": model.get("min_agreement"),
        "source": data.get("source"),
        "step": data.get("step"),
    }
    settings = {
        name: value if isinstance(value, (bool, int, float)) else cut(str(value), MAX_SETTING)
        for name, value in named.items()
        if value is not None
    }
    metrics = {
        name: summary[name] for name in ("contrasts", "contrast_accuracy", "known_share", "median_logit_diff")
    }
    for ending, found in by_ending(summary):
        if found["agreement"] is not None:
            without = found["agreement"]["without_position_0"]["pearson"]
            metrics[f"agreement_pearson{ending}"] = found["agreement"]["pearson"]
            metrics[f"agreement_pearson_without_position_0{ending}"] = without
    return settings, {name: value for name, value in metrics.items() if value is not None}
