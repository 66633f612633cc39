"""The pictures of a run, drawn from its records and its summary.

Shape suffixes: N cells (a layer at a token of a contrast).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_attr.attribution.catalogue import rule_title
from lit_attr.errors import ArgumentError
from lit_attr.evaluation.agreement import verdict
from lit_attr.views.heatmaps import draw_fact_heatmap, draw_role_heatmap
from lit_attr.views.scatter import draw_scatter


def fact_image(
    example: Mapping[str, Any], *, layers: Sequence[int], rule: str, component: str | None = None
) -> Image.Image:
    """Draws the heatmap of one example of a batch file.

    Args:
        example: The example.
        layers: The layers of its scores, as in the file's header.
        rule: The rule of its scores, as in the file's header.
        component: The component whose scores are drawn. Default: the example's only one.

    Raises:
        ArgumentError: The example has no scores of the component, or of several components while none is named.
    """
    component = choose_component(example, component)
    compared = f"{example['true_token'].strip()} − {example['false_token'].strip()}"
    known = "known" if example["rank_true"] == 0 else "not known"
    difference = f"{example['logit_diff']:+.2f}".replace("-", "−")
    start, stop = example["subject_span"]
    return draw_fact_heatmap(
        np.asarray(example["scores"][component]["sum"], dtype=float),
        layers=layers,
        tokens=example["tokens"],
        subject_span=(start, stop),
        title=f"{example['prompt']} → {example['target_true'].strip()} / {example['target_false'].strip()}",
        subtitle=f"logit difference {compared}: {difference} · {known} · {component_name(component)} "
        f"{rule_title(rule)}",
    )


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
        title=f"Mean {component_name(profile['component'])} {rule_title(profile['rule'])} by layer and token role",
        subtitle=subtitle,
    )


def agreement_image(
    scores_N: NDArray[np.floating],
    effects_N: NDArray[np.floating],
    layers_N: NDArray[np.integer],
    *,
    agreement: Mapping[str, Any],
    component: str,
    rule: str,
) -> Image.Image:
    """Draws the scatter plot of scores and the exact effects that they estimate.

    Args:
        scores_N: The scores in logits.
        effects_N: The exact effects of the same cells in logits.
        layers_N: The layers of the same cells.
        agreement: The agreement, as the summary has it; its verdict is the subtitle.
        component: The component of the scores.
        rule: The rule of the scores.
    """
    return draw_scatter(
        scores_N,
        effects_N,
        layers_N,
        title=f"{component_name(component)} {rule_title(rule)} and exact effects",
        subtitle=verdict(agreement),
    )


def choose_component(example: Mapping[str, Any], component: str | None = None) -> str:
    """The component whose scores are shown: the one named, or the only one that the example has.

    Raises:
        ArgumentError: The example has no scores of the component, or of several components while none is named.
    """
    components: list[str] = sorted(example["scores"])
    if component is None and len(components) == 1:
        return components[0]
    if component is None or component not in components:
        found = "none is named" if component is None else f"there are no scores of {component}"
        raise ArgumentError("component", f"{found}; take one of {', '.join(components)}")
    return component


def component_name(component: str) -> str:
    """The component's name in titles."""
    return "MLP" if component == "mlp" else component
