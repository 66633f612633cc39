"""The pictures of a run: which numbers and words they are drawn with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreements import part, report
from PIL import ImageChops
from tiny_runs import ONE

from lit_attr.errors import ArgumentError
from lit_attr.evaluation.findings import Points
from lit_attr.evaluation.validity.agreement import verdict
from lit_attr.facts.roles import MEAN_ROLES
from lit_attr.views.cells import Quantity
from lit_attr.views.heatmaps import (
    Panel,
    draw_fact_heatmap,
    draw_fact_heatmaps,
    draw_role_heatmap,
    draw_role_heatmaps,
)
from lit_attr.views.pictures import (
    agreement_image,
    choose_component,
    component_name,
    components_image,
    fact_image,
    magnitude_image,
    profile_image,
)
from lit_attr.views.scatter import draw_scatter

RECORD: dict[str, Any] = {**ONE, "layers": [2, 5], "rule": "gradient", "logit_diff": -1.5}
PROFILE: dict[str, Any] = {
    "component": "mlp",
    "rule": "gradient",
    "layers": [2, 5],
    "roles": MEAN_ROLES,
    "contrasts": [4] * len(MEAN_ROLES),
    "mean_score": [[0.5] * 7 + [None], [-1.0] * 7 + [None]],
}


def same(one: Any, other: Any) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


@pytest.mark.parametrize(("rank", "known"), [(0, "known"), (3, "not known")])
def test_fact_image_says_what_was_compared(rank: int, known: str):
    expected = draw_fact_heatmap(
        np.array(ONE["scores"]["mlp"]["sum"], dtype=float),
        layers=[2, 5],
        tokens=ONE["tokens"],
        subject_span=(0, 2),
        title="A B is in → X / Y",
        subtitle=f"logit difference X − Y: −1.50 · {known} · MLP gradient × activation",
    )
    assert same(fact_image({**RECORD, "rank_true": rank}), expected)


def test_fact_image_marks_what_is_exact():
    marked_LT = np.array([[True, False, False, False], [False, False, False, True]])
    expected = draw_fact_heatmap(
        np.array(ONE["scores"]["mlp"]["sum"], dtype=float),
        layers=[2, 5],
        tokens=ONE["tokens"],
        subject_span=(0, 2),
        title="A B is in → X / Y",
        subtitle="logit difference X − Y: −1.50 · known · MLP gradient × activation · dots: exact effects",
        marked_LT=marked_LT,
    )
    found = fact_image({**RECORD, "rank_true": 0, "is_exact": {"mlp": marked_LT.tolist()}})
    assert same(found, expected)
    # The first cell and the last one have dots, a cell between them has none.
    plain = draw_fact_heatmap(
        np.array(ONE["scores"]["mlp"]["sum"], dtype=float),
        layers=[2, 5],
        tokens=ONE["tokens"],
        subject_span=(0, 2),
        title="A B is in → X / Y",
        subtitle="logit difference X − Y: −1.50 · known · MLP gradient × activation · dots: exact effects",
    )
    changed = np.asarray(ImageChops.difference(found, plain)).any(-1)
    rows, columns = np.nonzero(changed)
    assert np.ptp(rows) > np.ptp(columns) > 0
    assert changed.sum() < 2 * 12 * 12


def test_fact_image_draws_the_component_asked_for():
    other = {"sum": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    several = {**RECORD, "scores": {"mlp": ONE["scores"]["mlp"], "attention": other}}
    assert same(fact_image(several, "attention"), fact_image({**RECORD, "scores": {"attention": other}}))
    assert same(fact_image(several, "mlp"), fact_image(RECORD))


def test_component_is_the_first_unless_one_is_named():
    several = {"scores": {"mlp": {}, "attention": {}}}
    assert choose_component(several) == "mlp"
    assert choose_component({"scores": {"block": {}}}) == "block"
    assert choose_component(several, "attention") == "attention"
    with pytest.raises(ArgumentError, match="component: there are no scores of block; take one of mlp, attention"):
        choose_component(several, "block")


def test_profile_image_says_what_is_averaged():
    expected = draw_role_heatmap(
        np.array(PROFILE["mean_score"], dtype=float),
        layers=[2, 5],
        roles=MEAN_ROLES,
        counts=[4] * len(MEAN_ROLES),
        title="Mean MLP gradient × activation by layer and token role (estimates)",
        subtitle="4 contrasts",
    )
    assert same(profile_image(PROFILE, "4 contrasts"), expected)


EFFECTS: dict[str, Any] = {
    **PROFILE,
    "facts": [4] * 7 + [0],
    "sampled": [3] * 7 + [0],
    "mean_effect": [[0.5] * 6 + [None] * 2, [-1.0] * 6 + [None] * 2],
    "interval_low": [[0.25] * 6 + [None] * 2, [-3.0] * 6 + [None] * 2],
    "interval_high": [[0.75] * 6 + [None] * 2, [1.0] * 6 + [None] * 2],
    "mean_magnitude": [[0.75] * 6 + [None] * 2, [1.5] * 6 + [None] * 2],
}


def test_profile_image_draws_mean_effects_with_dots():
    expected = draw_role_heatmap(
        np.array(EFFECTS["mean_effect"], dtype=float),
        layers=[2, 5],
        roles=MEAN_ROLES,
        counts=[4] * len(MEAN_ROLES),
        title="Mean exact MLP effect by layer and token role",
        subtitle="4 contrasts · gradient × activation of all facts, exact effects of 3 · "
        "grey: fewer than 8 of these · dots: the 95% interval excludes 0",
        quantity=Quantity("effect"),
        marked_LR=np.array([[True] * 6 + [False] * 2, [False] * 8]),
    )
    assert same(profile_image(EFFECTS, "4 contrasts"), expected)


def test_magnitude_image_has_no_dots():
    expected = draw_role_heatmap(
        np.array(EFFECTS["mean_magnitude"], dtype=float),
        layers=[2, 5],
        roles=MEAN_ROLES,
        counts=[4] * len(MEAN_ROLES),
        title="Mean exact MLP |effect| by layer and token role",
        subtitle="4 contrasts · gradient × activation of all facts, exact effects of 3 · "
        "grey: fewer than 8 of these",
        quantity=Quantity("effect", is_signed=False),
    )
    assert same(magnitude_image(EFFECTS, "4 contrasts"), expected)


def test_exact_effects_of_all_facts_need_no_dots():
    expected = draw_role_heatmap(
        np.array(EFFECTS["mean_effect"], dtype=float),
        layers=[2, 5],
        roles=MEAN_ROLES,
        counts=[4] * len(MEAN_ROLES),
        title="Mean exact MLP effect by layer and token role",
        subtitle="4 contrasts · exact effects of all facts",
        quantity=Quantity("effect"),
    )
    assert same(profile_image({**EFFECTS, "sampled": EFFECTS["facts"]}, "4 contrasts"), expected)


def test_agreement_image_says_the_verdict():
    agreement = report(0.9, {"2": part(0.1)})
    points = Points(np.array([0.5, 1.0]), np.array([0.25, 1.5]), np.array([2, 5]))
    expected = draw_scatter(
        *points, title="MLP gradient × activation and exact effects", subtitle=verdict(agreement)
    )
    assert same(agreement_image(points, {"profile": PROFILE, "agreement": agreement}), expected)


@pytest.mark.parametrize(("component", "name"), [("mlp", "MLP"), ("attention", "attention")])
def test_component_names(component: str, name: str):
    assert component_name(component) == name


def test_fact_image_draws_all_components_side_by_side():
    other = {"sum": [[1, 2, 3, 4], [5, 6, 7, 8]]}
    marked = {"mlp": np.zeros((2, 4), dtype=bool), "attention": np.ones((2, 4), dtype=bool)}
    several = {**RECORD, "scores": {"mlp": ONE["scores"]["mlp"], "attention": other}, "rank_true": 0}
    scores = {name: np.array(each["sum"], dtype=float) for name, each in several["scores"].items()}
    for is_exact, ending in ((None, ""), (marked, " · dots: exact effects")):
        expected = draw_fact_heatmaps(
            [
                Panel(title, scores[name], None if is_exact is None else is_exact[name])
                for name, title in (("mlp", "MLP"), ("attention", "attention"))
            ],
            layers=[2, 5],
            tokens=ONE["tokens"],
            subject_span=(0, 2),
            title="A B is in → X / Y",
            subtitle=f"logit difference X − Y: −1.50 · known · MLP and attention gradient × activation{ending}",
        )
        record = several if is_exact is None else {**several, "is_exact": is_exact}
        assert same(fact_image(record), expected)


def test_components_are_drawn_side_by_side():
    other = {**PROFILE, "component": "attention", "mean_score": [[-2.0] * 8, [1.0] * 8]}
    shared = {"layers": [2, 5], "roles": MEAN_ROLES, "counts": [4] * len(MEAN_ROLES)}
    panels = [
        Panel(title, np.array(each["mean_score"], dtype=float))
        for title, each in (("MLP", PROFILE), ("attention", other))
    ]
    expected = draw_role_heatmaps(
        panels,
        **shared,
        title="Mean MLP and attention gradient × activation by layer and token role (estimates)",
        subtitle="4 contrasts",
    )
    assert same(components_image([PROFILE, other], "4 contrasts"), expected)


def test_components_show_mean_effects_where_all_have_them():
    ends = {"interval_low": [[-1.0] * 8, [-0.5] * 8], "interval_high": [[0.5] * 8, [-0.25] * 8]}
    effects = {"mean_effect": [[-2.0] * 8, [-0.375] * 8], "sampled": [2] * 8, "facts": [4] * 8, **ends}
    profiles = [{**PROFILE, **effects, "component": name} for name in ("mlp", "attention", "block")]
    marked_LR = np.array([[False] * 8, [True] * 8])
    expected = draw_role_heatmaps(
        [Panel(title, np.array(effects["mean_effect"]), marked_LR) for title in ("MLP", "attention", "block")],
        layers=[2, 5],
        roles=MEAN_ROLES,
        counts=[4] * len(MEAN_ROLES),
        title="Mean exact MLP, attention and block effect by layer and token role",
        subtitle="4 contrasts · gradient × activation of all facts, exact effects of 2 · dots: the 95% interval "
        "excludes 0",
        quantity=Quantity("effect"),
    )
    assert same(components_image(profiles, "4 contrasts"), expected)
