"""Curves, charts and hyperparameters as plain data."""

from __future__ import annotations

import re
from typing import Any

import pytest
from agreements import part, report

from lit_attr.evaluation.profile import KINDS
from lit_attr.views.curves import (
    agreement_curves,
    by_ending,
    effect_curves,
    faithfulness_curves,
    hyperparameters,
    profile_curves,
)

SUMMARY: dict[str, Any] = {
    "contrasts": 4,
    "contrast_accuracy": 0.75,
    "known_share": 0.5,
    "median_logit_diff": None,
    "agreement": None,
    "profile": {"component": "mlp"},
}


def test_profile_curves_have_a_point_a_layer_with_its_band():
    profile = {
        "layers": [3, 7],
        "roles": ["last", "first subject"],
        "mean_score": [[1.0, None], [-2.0, 0.5]],
        "standard_error": [[0.5, None], [None, 0.25]],
    }
    curves = [*profile_curves(profile, "mean_score")]
    assert curves == [
        (
            3,
            {
                "mean_score/last": 1.0,
                "mean_score_low/last": pytest.approx(1 - 0.98),
                "mean_score_high/last": pytest.approx(1 + 0.98),
            },
        ),
        (
            7,
            {
                "mean_score/last": -2.0,
                "mean_score/first_subject": 0.5,
                "mean_score_low/first_subject": pytest.approx(0.5 - 0.49),
                "mean_score_high/first_subject": pytest.approx(0.5 + 0.49),
            },
        ),
    ]


def test_effect_curves_have_the_ends_of_their_intervals():
    profile = {
        "layers": [3, 7],
        "roles": ["last", "first subject"],
        "mean_effect": [[1.0, None], [-2.0, None]],
        "interval_low": [[0.5, None], [-3.0, None]],
        "interval_high": [[1.5, None], [-1.0, None]],
        "mean_magnitude": [[1.25, None], [2.25, None]],
        "magnitude_low": [[0.75, None], [1.75, None]],
        "magnitude_high": [[1.75, None], [2.75, None]],
    }
    first = {
        "mean_effect/last": 1.0,
        "mean_effect_low/last": 0.5,
        "mean_effect_high/last": 1.5,
        "mean_magnitude/last": 1.25,
        "mean_magnitude_low/last": 0.75,
        "mean_magnitude_high/last": 1.75,
    }
    curves = [*effect_curves(profile)]
    assert curves[0] == (3, first)
    assert [layer for layer, _ in curves] == [3, 7]
    ((_, known), _) = effect_curves(profile, "_known")
    assert known["mean_effect_known_low/last"] == 0.5


def test_a_profile_without_effects_has_no_curves_of_them():
    without = {name: [[None]] for names in KINDS for name in names}
    assert [*effect_curves({"layers": [3], "roles": ["last"], **without})] == []


def test_agreement_curves_leave_out_what_is_undefined():
    agreement = report(0.75, {"0": part(0.25, spearman=None), "5": part(0.5, 0.375, 0.75, spearman=1.0)})
    assert [*agreement_curves(agreement)] == [
        (0, {"agreement/pearson": 0.25}),
        (
            5,
            {
                "agreement/pearson": 0.5,
                "agreement_low/pearson": 0.375,
                "agreement_high/pearson": 0.75,
                "agreement/spearman": 1.0,
            },
        ),
    ]


def test_faithfulness_curves_have_a_point_a_percentage():
    faithfulness = {
        "percent": [1, 5],
        "comprehensiveness": {"scores": {"curve": [0.5, 1.5]}, "random": {"curve": [0.25, None]}},
        "sufficiency": {"scores": {"curve": [3.0, 2.0]}, "random": {"curve": [4.0, 3.5]}},
    }
    assert [*faithfulness_curves(faithfulness)] == [
        (
            1,
            {
                "comprehensiveness/scores": 0.5,
                "comprehensiveness/random": 0.25,
                "sufficiency/scores": 3.0,
                "sufficiency/random": 4.0,
            },
        ),
        (5, {"comprehensiveness/scores": 1.5, "sufficiency/scores": 2.0, "sufficiency/random": 3.5}),
    ]


def test_hyperparameters_are_settings_and_final_numbers():
    model = {"model_name": "demo", "layers": [0, 1], "rule": "gradient", "dtype": "float32", "min_agreement": 0.9}
    settings, metrics = hyperparameters(SUMMARY, {"model": model, "data": {"limit": None, "step": "all"}})
    assert settings == {
        "model": "demo",
        "rule": "gradient",
        "format": "float32",
        "min_agreement": 0.9,
        "step": "all",
    }
    assert metrics == {"contrasts": 4, "contrast_accuracy": 0.75, "known_share": 0.5}


@pytest.mark.parametrize(("pearson", "metrics"), [(0.75, {"agreement_pearson": 0.75}), (None, {})])
def test_agreement_is_a_final_number(pearson: float | None, metrics: dict[str, float]):
    summary = {**SUMMARY, "agreement": report(pearson, {})}
    metrics = {**metrics, "agreement_pearson_without_position_0": 0.5}
    _, found = hyperparameters(summary, {"model": {}, "data": {}})
    assert {name: value for name, value in found.items() if name not in SUMMARY} == metrics


def test_components_but_the_first_have_tags_of_their_own():
    path = "transformer.h.{layer}.attn.c_attn"
    names = ("attention", path, path.replace(".", "_"))
    others = {
        name: {"profile": {"component": name}, "agreement": report(0.1 * place, {})}
        for place, name in enumerate(names)
    }
    summary = {**SUMMARY, "agreement": report(0.75, {}), "other_components": others}
    found = dict(by_ending(summary))
    assert [each["profile"]["component"] for each in found.values()] == ["mlp", *names]
    assert [*found][:2] == ["", "_attention"]
    for ending in [*found][2:]:
        # A part of a file's name on every system, and no two the same.
        assert re.fullmatch(r"[\w.-]{1,101}", ending)
        assert found[ending]["contrasts"] == 4
    assert len(found) == 4
    _, metrics = hyperparameters(summary, {"model": {}, "data": {}})
    assert (metrics["agreement_pearson"], metrics["agreement_pearson_attention"]) == (0.75, 0)
    layer = {"3": part(0.5, 0.25, 0.625)}
    assert [*agreement_curves(report(0.5, layer), "_attention")] == [
        (
            3,
            {
                "agreement_attention/pearson": 0.5,
                "agreement_attention_low/pearson": 0.25,
                "agreement_attention_high/pearson": 0.625,
            },
        )
    ]
