"""The page of text on a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from agreements import part, report
from tiny_runs import ONE

from lit_attr.evaluation.findings import RunFindings
from lit_attr.evaluation.profile import ProfileSums
from lit_attr.views.pages import neurons_page, summary_page

NO_SETTINGS: dict[str, Any] = {"model": {}, "data": {}}


def findings(
    agreement: dict[str, Any] | None = None, adaptive: dict[str, Any] | None = None, **changes: Any
) -> RunFindings:
    profile = ProfileSums([0, 1], "mlp", "gradient")
    profile.add(np.array(ONE["scores"]["mlp"]["sum"]), ONE["roles"], ONE["subject_span"])
    summary = {
        "contrasts": 3,
        "known": 1,
        "rejected": 2,
        "contrast_accuracy": 2 / 3,
        "median_logit_diff": -0.5,
        "profile": profile.compute(),
        "agreement": agreement,
        "adaptive": adaptive,
    }
    lists = ("spread", "asked_for", "not_found", "largest", "strongest", "failures")
    found: dict[str, Any] = {name: [] for name in lists}
    return RunFindings(**{**found, "summary": summary, "components": {}, **changes})


def test_page_counts_and_names_the_strongest_layers():
    lines = summary_page(findings(), NO_SETTINGS).splitlines()
    for line in (
        "| contrasts | 3 |",
        r"| known \(true answer above every other token\) | 1 |",
        "| rows refused | 2 |",
        r"| contrast accuracy \(true above false\) | 66\.7% |",
        r"| median logit difference | \-0\.50 |",
        r"| last | 1: \+8\.000, 0: \+4\.000 |",
        r"| position 0 \(often an attention sink, in no role\) | 1: \+20\.000, 0: \+10\.000 |",
    ):
        assert line in lines
    # The subject begins at position 0.
    assert not any(line.startswith("| first subject") for line in lines)


def test_page_says_that_mean_scores_are_estimates():
    assert "Strongest mean scores (estimates) of each role, in logits:" in summary_page(findings(), NO_SETTINGS)


def test_page_names_mean_effects_with_their_intervals():
    empty = findings()
    effects = {
        "roles": ["position 0", "prefix", "first subject", "further", "last"],
        "facts": [20, 20, 3, 0, 20],
        "sampled": [8, 8, 2, 0, 8],
        "mean_effect": [[0.25, 0.5, None, None, -3.0], [-4.0, 0.125, None, None, 5.0]],
        "interval_low": [[0.125, -0.5, None, None, -3.5], [-5.0, -1.0, None, None, 4.0]],
        "interval_high": [[0.375, 1.5, None, None, -2.5], [1.0, 2.0, None, None, 6.0]],
        "mean_magnitude": [[0.5, 0.75, None, None, 3.5], [4.5, 0.25, None, None, 6.0]],
        "magnitude_low": [[0.25, 0.0, None, None, 3.0], [4.0, 0.125, None, None, 5.5]],
        "magnitude_high": [[0.75, 2.0, None, None, 4.0], [5.0, 0.375, None, None, 6.5]],
    }
    summary = {**empty.summary, "profile": {**empty.summary["profile"], **effects}}
    page = summary_page(empty._replace(summary=summary), NO_SETTINGS)
    lines = page.replace("\\", "").splitlines()
    start = lines.index("| role | facts with exact effects | layer: mean effect | layer: mean magnitude |")
    assert lines[start - 2] == (
        "Strongest mean effects of each role, in logits, with the 95% intervals that exclude 0:"
    )
    assert lines[start + 2 : start + 7] == [
        "| position 0 (often an attention sink, in no role) | 8 | 0: +0.250 (+0.125 to +0.375) "
        "| 1: 4.500 (4.000 to 5.000), 0: 0.500 (0.250 to 0.750) |",
        "| prefix | 8 | none | 1: 0.250 (0.125 to 0.375) |",
        "| first subject | 2 | too few | too few |",
        "| last | 8 | 1: +5.000 (+4.000 to +6.000), 0: -3.000 (-3.500 to -2.500) "
        "| 1: 6.000 (5.500 to 6.500), 0: 3.500 (3.000 to 4.000) |",
        "",
    ]


def test_page_of_an_empty_run_has_dashes():
    empty = findings()
    summary = {**empty.summary, "contrasts": 0, "contrast_accuracy": None, "median_logit_diff": None}
    lines = summary_page(empty._replace(summary=summary), NO_SETTINGS).splitlines()
    assert r"| contrast accuracy \(true above false\) | \- |" in lines
    assert r"| median logit difference | \- |" in lines


def test_page_lists_facts_and_settings():
    failure = {**ONE, "id": "two", "logit_diff": -2.5}
    page = summary_page(
        findings(strongest=[{**ONE, "logit_diff": 1.25}], failures=[failure]),
        {"model": {"model_name": "demo", "revision": None}, "data": {"limit": 3}},
    )
    sections = {title: rows for title, _, rows in (part.partition("\n") for part in page.split("## "))}
    assert r"| one | A B is in | X | Y | \+1\.25 |" in sections["Strongest facts"]
    assert r"| two | A B is in | X | Y | \-2\.50 |" in sections["Failures: the false answer preferred"]
    assert r"| model\_name | demo |" in sections["Settings: model"] and "revision" not in page
    assert "| limit | 3 |" in sections["Settings: data"]


def test_page_escapes_what_comes_from_the_data():
    strongest = {**ONE, "prompt": "<script>alert(1)</script> | [x](http://x) *b* `c` # d"}
    page = summary_page(findings(strongest=[strongest]), {"model": {"model_name": "a|b"}, "data": {}})
    assert "<script>" not in page
    assert r"&lt;script&gt;alert\(1\)&lt;/script&gt; \| \[x\]\(http://x\) \*b\* \`c\` \# d" in page
    assert r"a\|b" in page


def test_page_shows_the_agreement_of_each_layer():
    layer = part(0.25, 0.125, 0.375, spearman=None, same_sign=0.5, top_3_overlap=1.0)
    agreement = report(0.75, {"0": layer}, spearman=0.5, same_sign=0.9)
    page = summary_page(findings(agreement), NO_SETTINGS)
    assert r"do not rely on the scores of layer 0 \(r = 0\.25\)" in page
    lines = page.splitlines()
    start = lines.index("| layer | pearson | 95% interval | spearman | same sign | top 3 overlap |")
    assert lines[start + 2 : start + 5] == [
        r"| all | \+0\.75 | \+0\.65 to \+0\.85 | \+0\.50 | \+0\.90 | \- |",
        r"| all, without position 0 | \+0\.50 | \+0\.38 to \+0\.62 | \- | \- | \- |",
        r"| 0 | \+0\.25 | \+0\.12 to \+0\.38 | \- | \+0\.50 | \+1\.00 |",
    ]
    assert "## Agreement" in lines
    assert "## Agreement" not in summary_page(findings(), NO_SETTINGS)


def test_page_says_what_an_adaptive_run_promised_and_kept():
    asked = {"min_agreement": 0.9, "min_agreement_by_layer": None, "exact_share": None}
    page = summary_page(findings(adaptive=asked), NO_SETTINGS)
    assert "## Adaptive attribution\n\nr of at least 0\\.9 asked for; every score is an exact effect" in page
    assert "## Adaptive" not in summary_page(findings(), NO_SETTINGS)


def test_the_page_of_neurons_has_a_table_for_each_of_the_largest_relations():
    neuron = {"layer": 3, "neuron": 70, "contrasts": 3, "share": 0.75, "other_share": 0.125, "mean_score": -0.5}
    relations = [
        {"relation": f"P{number}", "known": number, "neurons": [neuron] if number == 7 else []}
        for number in range(8)
    ]
    relations.append({"relation": "", "known": 9, "neurons": [{**neuron, "other_share": None}]})
    lines = neurons_page({"known": 37, "relations": relations}).splitlines()
    assert "(37)" in lines[0]
    heads = [line for line in lines if line.startswith("##")]
    assert heads == [
        "## no relation: 9 known contrasts",
        *(f"## P{number}: {number} known contrasts" for number in (7, 6, 5, 4, 3)),
    ]
    first, second = (line for line in lines if line.startswith("| 3 |"))
    assert first == r"| 3 | 70 | 75% | \- | \-0\.500 |"
    assert second == r"| 3 | 70 | 75% | 12% | \-0\.500 |"


def test_each_component_has_its_means_and_agreement():
    profile = ProfileSums([0, 1], "attention", "gradient")
    profile.add(-np.array(ONE["scores"]["mlp"]["sum"]), ONE["roles"], ONE["subject_span"])
    found = findings(report(0.75, {"0": part(0.25)}))
    other = {"profile": profile.compute(), "agreement": report(0.5, {"0": part(0.125)}), "adaptive": None}
    both = found._replace(summary={**found.summary, "other_components": {"attention": other}})
    lines = summary_page(both, NO_SETTINGS).splitlines()
    mlp, attention = lines.index("### mlp"), lines.index("### attention")
    assert "| last | 1: \\+8\\.000, 0: \\+4\\.000 |" in lines[mlp:attention]
    assert "| last | 1: \\-8\\.000, 0: \\-4\\.000 |" in lines[attention:]
    heads = [line for line in lines if line.startswith("## Agreement")]
    assert heads == ["## Agreement of mlp", "## Agreement of attention"]
    # A single one needs no name.
    assert "## Agreement" in summary_page(found, NO_SETTINGS).splitlines()
    assert "### mlp" not in summary_page(found, NO_SETTINGS)
