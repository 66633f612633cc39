"""The pictures of a run, drawn from its records and its summary.

Axes: P profiles, L layers, R roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_attr.attribution.catalogue import rule_title
from lit_attr.errors import ArgumentError
from lit_attr.evaluation.effects import FEWEST_FACTS
from lit_attr.evaluation.findings import Points
from lit_attr.evaluation.strongest import all_exact, has_effects
from lit_attr.evaluation.validity.agreement import verdict
from lit_attr.text import cut
from lit_attr.views.cells import Quantity
from lit_attr.views.heatmaps import Panel, draw_fact_heatmaps, draw_role_heatmaps
from lit_attr.views.labels import shortened
from lit_attr.views.scatter import draw_scatter

# Characters of a fact's texts that are drawn.
MAX_PROMPT, MAX_ANSWER, MAX_TOKEN = 120, 32, 20
MAX_RULE = 60


def fact_image(record: Mapping[str, Any], component: str | None = None) -> Image.Image:
    """Draws the heatmap of one contrast; of several components, their maps side by side on one scale.

    Args:
        record: The contrast, as `load_attributions` yields it.
        component: The component whose scores are drawn alone. Default: all.

    Raises:
        ArgumentError: The record has no scores of the component.
    """
    components = [*record["scores"]] if component is None else [choose_component(record, component)]
    compared = " − ".join(shortened(record[name].strip(), MAX_TOKEN) for name in ("true_token", "false_token"))
    known = "known" if record["rank_true"] == 0 else "not known"
    difference = f"{record['logit_diff']:+.2f}".replace("-", "−")
    start, stop = record["subject_span"]
    subtitle = f"logit difference {compared}: {difference} · {known} · {components_name(components)} "
    subtitle += _rule_name(record["rule"])
    exact = record.get("is_exact")
    if exact is not None:
        subtitle += " · dots: exact effects"
    panels = [
        Panel(
            component_name(each) if len(components) > 1 else "",
            np.asarray(record["scores"][each]["sum"], dtype=float),
            None if exact is None else np.asarray(exact[each], dtype=np.bool_),
        )
        for each in components
    ]
    return draw_fact_heatmaps(
        panels,
        layers=record["layers"],
        tokens=record["tokens"],
        subject_span=(start, stop),
        title=fact_title(record),
        subtitle=subtitle,
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
    return components_image([profile], subtitle)


def components_image(profiles: Sequence[Mapping[str, Any]], subtitle: str) -> Image.Image:
    """Draws the heatmaps of the profiles of several components side by side on one scale, as `profile_image` does.

    Args:
        profiles: The profiles of the same contrasts.
        subtitle: Which contrasts they average.
    """
    if all(map(has_effects, profiles)):
        return _effects_image(profiles, subtitle, "mean_effect", Quantity("effect"))
    first = profiles[0]
    name = f"{components_name([each['component'] for each in profiles])} {_rule_name(first['rule'])}"
    return draw_role_heatmaps(
        [Panel(_panel_name(profiles, each), np.array(each["mean_score"], dtype=float)) for each in profiles],
        layers=first["layers"],
        roles=first["roles"],
        counts=first["contrasts"],
        title=f"Mean {name} by layer and token role (estimates)",
        subtitle=subtitle,
    )


def magnitude_image(profile: Mapping[str, Any], subtitle: str) -> Image.Image:
    """Draws the heatmap of the mean magnitude of the effects of each layer at each token role.

    Args:
        profile: The profile, as the summary has it, with mean effects.
        subtitle: Which contrasts it averages.
    """
    return _effects_image([profile], subtitle, "mean_magnitude", Quantity("effect", is_signed=False))


def _effects_image(
    profiles: Sequence[Mapping[str, Any]], subtitle: str, measure: str, quantity: Quantity
) -> Image.Image:
    first = profiles[0]
    means_PLR = [np.array(each[measure], dtype=float) for each in profiles]
    marked_PLR: list[NDArray[np.bool_] | None] = [None] * len(profiles)
    if all_exact(first):
        source = "exact effects of all facts"
    else:
        source = f"{_rule_name(first['rule'])} of all facts, exact effects of {max(first['sampled'])}"
        if (np.isnan(means_PLR[0]).any(0) & (np.array(first["facts"]) > 0)).any():
            source += f" · grey: fewer than {FEWEST_FACTS} of these"
        if quantity.is_signed:
            marked_PLR = [_excludes_0_LR(each) for each in profiles]
            source += " · dots: the 95% interval excludes 0"
    kind = "effect" if quantity.is_signed else "|effect|"
    name = components_name([each["component"] for each in profiles])
    panels = [
        Panel(_panel_name(profiles, each), means_LR, marked_LR)
        for each, means_LR, marked_LR in zip(profiles, means_PLR, marked_PLR, strict=True)
    ]
    return draw_role_heatmaps(
        panels,
        layers=first["layers"],
        roles=first["roles"],
        counts=first["contrasts"],
        title=f"Mean exact {name} {kind} by layer and token role",
        subtitle=f"{subtitle} · {source}",
        quantity=quantity,
    )


def _excludes_0_LR(profile: Mapping[str, Any]) -> NDArray[np.bool_]:
    low_LR, high_LR = (np.array(profile[end], dtype=float) for end in ("interval_low", "interval_high"))
    excluded_LR: NDArray[np.bool_] = (low_LR > 0) | (high_LR < 0)
    return excluded_LR


def _panel_name(profiles: Sequence[Mapping[str, Any]], profile: Mapping[str, Any]) -> str:
    """The name above a map; a single map needs none."""
    return component_name(profile["component"]) if len(profiles) > 1 else ""


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
    """The component whose scores are shown: the one named, or the first that the record has.

    Raises:
        ArgumentError: The record has no scores of the component.
    """
    components: list[str] = [*record["scores"]]
    if component is None:
        return components[0]
    if component not in components:
        names = ", ".join(components)
        raise ArgumentError("component", f"there are no scores of {component}; take one of {names}")
    return component


def component_name(component: str) -> str:
    """The component's name in titles."""
    return "MLP" if component == "mlp" else cut(component, MAX_ANSWER)


def components_name(components: Sequence[str]) -> str:
    """The names of several components in titles."""
    *others, last = map(component_name, components)
    return f"{', '.join(others)} and {last}" if others else last


def _rule_name(rule: str) -> str:
    return cut(rule_title(rule), MAX_RULE)
