"""The pictures of a run, drawn from its records and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lit_attr.attribution.catalogue import rule_title
from lit_attr.errors import ArgumentError
from lit_attr.evaluation.agreement import verdict
from lit_attr.evaluation.findings import Points
from lit_attr.text import cut
from lit_attr.views.heatmaps import draw_fact_heatmap, draw_role_heatmap
from lit_attr.views.labels import shortened
from lit_attr.views.scatter import draw_scatter

# Characters of a fact's texts that are drawn.
MAX_PROMPT, MAX_ANSWER, MAX_TOKEN = 120, 32, 20
MAX_RULE = 60


def fact_image(record: Mapping[str, Any], component: str | None = None) -> Image.Image:
    """Draws the heatmap of one contrast.

    Args:
        record: The contrast, as `load_attributions` yields it.
        component: The component whose scores are drawn. Default: the record's only one.

    Raises:
        ArgumentError: The record has no scores of the component, or of several components while none is named.
    """
    component = choose_component(record, component)
    compared = " − ".join(shortened(record[name].strip(), MAX_TOKEN) for name in ("true_token", "false_token"))
    known = "known" if record["rank_true"] == 0 else "not known"
    difference = f"{record['logit_diff']:+.2f}".replace("-", "−")
    start, stop = record["subject_span"]
    return draw_fact_heatmap(
        np.asarray(record["scores"][component]["sum"], dtype=float),
        layers=record["layers"],
        tokens=record["tokens"],
        subject_span=(start, stop),
        title=fact_title(record),
        subtitle=f"logit difference {compared}: {difference} · {known} · {component_name(component)} "
        f"{_rule_name(record['rule'])}",
    )


def fact_title(record: Mapping[str, Any]) -> str:
    """What a contrast asks, in one line; of long texts the middle is left out."""
    true, false = (shortened(record[name].strip(), MAX_ANSWER) for name in ("target_true", "target_false"))
    return f"{shortened(record['prompt'], MAX_PROMPT)} → {true} / {false}"


def profile_image(profile: Mapping[str, Any], subtitle: str) -> Image.Image:
    """Draws the heatmap of a profile: the mean score of each layer at each token role.

    Args:
        profile: The profile, as the summary has it.
        subtitle: Which contrasts it averages.
    """
    return draw_role_heatmap(
        np.array(profile["mean_score"], dtype=float),
        layers=profile["layers"],
        roles=profile["roles"],
        counts=profile["contrasts"],
        title=f"Mean {component_name(profile['component'])} {_rule_name(profile['rule'])} by layer and token role",
        subtitle=subtitle,
    )


def agreement_image(points: Points, summary: Mapping[str, Any]) -> Image.Image:
    """Draws the scatter plot of scores and the exact effects that they estimate.

    Args:
        points: The cells.
        summary: The run's summary; the verdict on its `agreement` is the subtitle.
    """
    profile = summary["profile"]
    return draw_scatter(
        points.scores_N,
        points.effects_N,
        points.layers_N,
        title=f"{component_name(profile['component'])} {_rule_name(profile['rule'])} and exact effects",
        subtitle=verdict(summary["agreement"]),
    )


def choose_component(record: Mapping[str, Any], component: str | None = None) -> str:
    """The component whose scores are shown: the one named, or the only one that the record has.

    Raises:
        ArgumentError: The record has no scores of the component, or of several components while none is named.
    """
    components: list[str] = sorted(record["scores"])
    if component is None and len(components) == 1:
        return components[0]
    names = ", ".join(components)
    if component is None:
        raise ArgumentError("component", f"there are scores of {names}; name one of them")
    if component not in components:
        raise ArgumentError("component", f"there are no scores of {component}; take one of {names}")
    return component


def component_name(component: str) -> str:
    """The component's name in titles."""
    return "MLP" if component == "mlp" else cut(component, MAX_ANSWER)


def _rule_name(rule: str) -> str:
    return cut(rule_title(rule), MAX_RULE)
