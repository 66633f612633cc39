"""The pictures of a run, drawn from its records and its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from lit_attr.attribution.catalogue import rule_title
from lit_attr.errors import ArgumentError
from lit_attr.evaluation.effects import FEWEST_FACTS
from lit_attr.evaluation.findings import Points
from lit_attr.evaluation.summary import all_exact, has_effects
from lit_attr.evaluation.validity.agreement import verdict
from lit_attr.text import cut
from lit_attr.views.cells import Quantity
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
    subtitle = f"logit difference {compared}: {difference} · {known} · {component_name(component)} "
    subtitle += _rule_name(record["rule"])
    exact = record.get("is_exact")
    if exact is not None:
        subtitle += " · dots: exact effects"
    return draw_fact_heatmap(
        np.asarray(record["scores"][component]["sum"], dtype=float),
        layers=record["layers"],
        tokens=record["tokens"],
        subject_span=(start, stop),
        title=fact_title(record),
        subtitle=subtitle,
        marked_LT=None if exact is None else np.asarray(exact[component], dtype=np.bool_),
    )


def fact_title(record: Mapping[str, Any]) -> str:
    """What a contrast asks, in one line; of long texts the middle is left out."""
    true, false = (shortened(record[name].strip(), MAX_ANSWER) for name in ("target_true", "target_false"))
    return f"{shortened(record['prompt'], MAX_PROMPT)} → {true} / {false}"


def profile_image(profile: Mapping[str, Any], subtitle: str) -> Image.Image:
    """Draws the heatmap of a profile: the mean effect of each layer at each token role, or the mean score.

    Mean effects have a dot where their 95% interval excludes 0. Without exact effects, the means are those of the
    scores, and the title says so.

    Args:
        profile: The profile, as the summary has it.
        subtitle: Which contrasts it averages.
    """
    if has_effects(profile):
        return _effects_image(profile, subtitle, "mean_effect", Quantity("effect"))
    name = f"{component_name(profile['component'])} {_rule_name(profile['rule'])}"
    return draw_role_heatmap(
        np.array(profile["mean_score"], dtype=float),
        layers=profile["layers"],
        roles=profile["roles"],
        counts=profile["contrasts"],
        title=f"Mean {name} by layer and token role (estimates)",
        subtitle=subtitle,
    )


def magnitude_image(profile: Mapping[str, Any], subtitle: str) -> Image.Image:
    """Draws the heatmap of the mean magnitude of the effects of each layer at each token role.

    Args:
        profile: The profile, as the summary has it, with mean effects.
        subtitle: Which contrasts it averages.
    """
    return _effects_image(profile, subtitle, "mean_magnitude", Quantity("effect", is_signed=False))


def _effects_image(profile: Mapping[str, Any], subtitle: str, measure: str, quantity: Quantity) -> Image.Image:
    means_LR = np.array(profile[measure], dtype=float)
    marked_LR = None
    if all_exact(profile):
        source = "exact effects of all facts"
    else:
        source = f"{_rule_name(profile['rule'])} of all facts, exact effects of {max(profile['sampled'])}"
        if (np.isnan(means_LR).any(0) & (np.array(profile["facts"]) > 0)).any():
            source += f" · grey: fewer than {FEWEST_FACTS} of these"
        if quantity.is_signed:
            low_LR, high_LR = (np.array(profile[end], dtype=float) for end in ("interval_low", "interval_high"))
            marked_LR = (low_LR > 0) | (high_LR < 0)
            source += " · dots: the 95% interval excludes 0"
    kind = "effect" if quantity.is_signed else "|effect|"
    return draw_role_heatmap(
        means_LR,
        layers=profile["layers"],
        roles=profile["roles"],
        counts=profile["contrasts"],
        title=f"Mean exact {component_name(profile['component'])} {kind} by layer and token role",
        subtitle=f"{subtitle} · {source}",
        quantity=quantity,
        marked_LR=marked_LR,
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
